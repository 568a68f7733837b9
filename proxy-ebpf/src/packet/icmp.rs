//! ICMP errors about translated packets: whoever sent the packet must hear of them, or path MTU discovery
//! fails (RFC 1191, RFC 8201). What they quote is made what that peer has sent.

use aya_ebpf::bindings::BPF_F_PSEUDO_HDR;
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{PacketCounter, Translation, Tuple};

use crate::cas;
use crate::forward::send;
use crate::frame::Frame;
use crate::headers::{ETHERNET, Family, Ip4, Ip6, Segment, Tcp, family, map, put, unmapped, words};
use crate::legs::find;
use crate::maps::count;
use crate::options::FAILED;
use crate::sum::Change;
use crate::track::is_within;
use crate::translate::Network as _;
use crate::work::Work;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;
/// Of ICMP: a destination cannot be reached, or not with packets of that size.
const UNREACHABLE: u8 = 3;
/// Of ICMPv6 likewise.
const UNREACHABLE6: u8 = 1;
const TOO_BIG6: u8 = 2;
/// Bytes in front of what is quoted.
const ICMP: u32 = 8;
/// Where the checksum is in them.
const CHECK: u32 = 2;

/// The first bytes of a TCP header: as much is quoted by everybody (RFC 792).
#[repr(C)]
struct Ports {
    source: u16,
    destination: u16,
    seq: u32,
}

/// Where what is quoted begins, and the TCP header in that.
const QUOTED4: u32 = ETHERNET + 20 + ICMP;
const TCP4: u32 = QUOTED4 + 20;
const QUOTED6: u32 = ETHERNET + 40 + ICMP;
const TCP6: u32 = QUOTED6 + 40;

/// What becomes of a packet that is no TCP segment.
#[inline(never)]
pub(crate) fn forward(ctx: &TcContext, work: &mut Work) -> i32 {
    translate(ctx, work).unwrap_or(crate::NEXT)
}

/// `None`: it is not one of ours.
#[inline(always)]
fn translate(ctx: &TcContext, work: &mut Work) -> Option<i32> {
    let Work { segment: about, ways, .. } = work;
    let family = family(ctx)?;
    let (is_error, tcp) = match family {
        Family::V4 => (read4(ctx, about), TCP4),
        Family::V6 => (read6(ctx, about), TCP6),
    };
    if !is_error {
        return None;
    }
    about.family = family;
    about.at = tcp;
    about.tcp = ctx.load(tcp as usize).or_else(|_| short(ctx, tcp)).ok()?;
    // It left for a peer: the tuple is the one by which that peer's packets arrive.
    about.tuple.source_port = u16::from_be(about.tcp.destination);
    about.tuple.destination_port = u16::from_be(about.tcp.source);
    let (direction, splice) = find(&about.tuple)?;
    if !cas::state(splice).is_translated() {
        return None;
    }
    // SAFETY: the entry lives until this program ends.
    let entry = unsafe { &*splice };
    // What goes to the one peer comes from the other.
    let (way, sender, by, to) = match direction {
        Direction::Up => {
            (&entry.to_client, &entry.backend_tuple, &entry.backend_state, &entry.client_state)
        }
        Direction::Down => {
            (&entry.to_backend, &entry.client_tuple, &entry.client_state, &entry.backend_state)
        }
    };
    let seq = about.seq().wrapping_sub(way.seq_delta);
    if !is_within(seq, to.acked_seq, by.snd_nxt) {
        // RFC 5927 §4.1: of nothing that is on its way.
        return None;
    }
    let out = ways.to(ctx, family, sender)?;
    let is_done = Frame::store(ctx, 0, &out.ethernet).is_some() && rewrite(ctx, about, way, sender);
    count(if is_done { PacketCounter::IcmpForwarded } else { PacketCounter::Malformed });
    Some(if is_done { send(out) } else { crate::DROP })
}

/// A quote may have no more of the TCP header than this (RFC 792).
#[inline(always)]
fn short(ctx: &TcContext, tcp: u32) -> Result<Tcp, i64> {
    let Ports { source, destination, seq } = ctx.load(tcp as usize)?;
    let rest = Tcp {
        source,
        destination,
        seq,
        ack: 0,
        length: 0,
        flags: 0,
        window: 0,
        check: 0,
        urgent: 0,
    };
    Ok(rest)
}

/// Whether it is an error about a TCP packet, and whose.
#[inline(never)]
fn read4(ctx: &TcContext, about: &mut Segment) -> bool {
    let Ok(outer) = ctx.load::<Ip4>(ETHERNET as usize) else { return false };
    let Ok(kind) = ctx.load::<u8>((ETHERNET + 20) as usize) else { return false };
    if outer.protocol != IPPROTO_ICMP || outer.version_length != 0x45 || kind != UNREACHABLE {
        return false;
    }
    let Ok(inner) = ctx.load::<Ip4>(QUOTED4 as usize) else { return false };
    map(&mut about.tuple.source, inner.destination);
    map(&mut about.tuple.destination, inner.source);
    inner.protocol == IPPROTO_TCP && inner.version_length == 0x45 && outer.ttl > 1
}

#[inline(never)]
fn read6(ctx: &TcContext, about: &mut Segment) -> bool {
    let Ok(outer) = ctx.load::<Ip6>(ETHERNET as usize) else { return false };
    let Ok(kind) = ctx.load::<u8>((ETHERNET + 40) as usize) else { return false };
    if outer.next != IPPROTO_ICMPV6 || !(kind == UNREACHABLE6 || kind == TOO_BIG6) {
        return false;
    }
    let Ok(inner) = ctx.load::<Ip6>(QUOTED6 as usize) else { return false };
    put(&mut about.tuple.source, inner.destination);
    put(&mut about.tuple.destination, inner.source);
    inner.next == IPPROTO_TCP && outer.hops > 1
}

/// The quote becomes what `sender` has sent, and the error goes to it, from us.
#[inline(always)]
fn rewrite(ctx: &TcContext, about: &Segment, way: &Translation, sender: &Tuple) -> bool {
    let old = &about.tcp;
    let new = Ports {
        source: sender.source_port.to_be(),
        destination: sender.destination_port.to_be(),
        seq: about.seq().wrapping_sub(way.seq_delta).to_be(),
    };
    let mut change = Change::default();
    change.half(old.source, new.source);
    change.half(old.destination, new.destination);
    change.word(old.seq, new.seq);
    let is_stored = ctx.store(about.at as usize, &new, 0).is_ok();
    is_stored
        && match about.family {
            Family::V4 => outer4(ctx, about, sender, change.folded()),
            Family::V6 => outer6(ctx, about, sender, change.folded()),
        }
}

#[inline(never)]
fn outer4(ctx: &TcContext, about: &Segment, sender: &Tuple, change: u64) -> bool {
    // The quoted header: its own sum takes up what changes in it.
    let new = [unmapped(&sender.source), unmapped(&sender.destination)];
    let mut inner = Change::default();
    inner.word(unmapped(&about.tuple.destination), new[0]);
    inner.word(unmapped(&about.tuple.source), new[1]);
    let check = (ETHERNET + 20 + CHECK) as usize;
    let is_quoted = ctx.store((QUOTED4 + 12) as usize, &new, 0).is_ok()
        && ctx.l3_csum_replace((QUOTED4 + 10) as usize, 0, inner.folded(), 0).is_ok()
        && ctx.l4_csum_replace(check, 0, change, 0).is_ok();
    let Some(mut outer) = ctx.reach(QUOTED4) else { return false };
    let addresses = Ip4::addresses(&outer, sender);
    Ip4::translate(&mut outer, sender, false, addresses);
    is_quoted
}

#[inline(never)]
fn outer6(ctx: &TcContext, about: &Segment, sender: &Tuple, ports: u64) -> bool {
    let mut change = Change::of(ports);
    let inner = &about.tuple;
    let is_quoted = replace(ctx, QUOTED6 + 8, (&inner.destination, &sender.source), &mut change)
        && replace(ctx, QUOTED6 + 24, (&inner.source, &sender.destination), &mut change);
    let Some(mut outer) = ctx.reach(QUOTED6) else { return false };
    let addresses = Ip6::addresses(&outer, sender);
    let change_of_all = Ip6::translate(&mut outer, sender, false, addresses);
    let check = (ETHERNET + 40 + CHECK) as usize;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    if let Some(change) = change_of_all {
        ctx.sum_up(change);
    }
    is_quoted
        && ctx.l4_csum_replace(check, 0, addresses.folded(), pseudo).is_ok()
        && ctx.l4_csum_replace(check, 0, change.folded(), 0).is_ok()
}

/// Writes an address of IPv6 at this place.
#[inline(always)]
fn replace(
    ctx: &TcContext,
    at: u32,
    (old, new): (&[u8; 16], &[u8; 16]),
    change: &mut Change,
) -> bool {
    let sum = store(ctx, at, old, new);
    change.add(sum);
    sum != FAILED
}

/// Not inlined: all of it at once is too much for the stack.
#[inline(never)]
fn store(ctx: &TcContext, at: u32, old: &[u8; 16], new: &[u8; 16]) -> u64 {
    if ctx.store(at as usize, new, 0).is_err() {
        return FAILED;
    }
    let (old, new) = (words(old), words(new));
    let mut change = Change::default();
    for word in 0..4 {
        change.word(old[word], new[word]);
    }
    change.folded()
}
