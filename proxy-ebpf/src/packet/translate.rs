//! From one leg's numbers to the other's.

use snisplit_common::abi::packet::{Fate, Tuple, Way};

use crate::frame::Frame;
use crate::headers::{CWR, ECE, ECN, ETHERNET, Family, Segment, TCP, Tcp, unmapped, words};
use crate::maps::count;
use crate::options::Options;
use crate::sum::Change;

/// Where things stand.
const IP4_SERVICE: u32 = ETHERNET + 1;
const IP4_TTL: u32 = ETHERNET + 8;
const IP4_CHECK: u32 = ETHERNET + 10;
const IP4_ADDRESSES: u32 = ETHERNET + 12;
const IP6_HOPS: u32 = ETHERNET + 7;
const IP6_ADDRESSES: u32 = ETHERNET + 8;
const TCP_CHECK: u32 = 16;

/// Rewrites a segment for the receiver, whose own packets arrive by the tuple `to`. `false`: it is one
/// that cannot be, or the buffer does not let itself be written.
#[inline(never)]
pub(crate) fn translate(ctx: &impl Frame, segment: &Segment, way: &Way, to: &Tuple) -> bool {
    rewrite(ctx, segment, way, to).is_some()
}

#[inline(always)]
fn rewrite(ctx: &impl Frame, segment: &Segment, way: &Way, to: &Tuple) -> Option<()> {
    let at = segment.at;
    let options = Options::read(ctx, at + TCP, segment.options)?;
    let mut change = options.translate(way)?;
    options.write(ctx, at + TCP)?;
    let tcp = header(segment, way, to);
    let old = &segment.tcp;
    change.half(old.source, tcp.source);
    change.half(old.destination, tcp.destination);
    change.word(old.seq, tcp.seq);
    change.word(old.ack, tcp.ack);
    change.half(old.window, tcp.window);
    change.half(
        u16::from_ne_bytes([old.length, old.flags]),
        u16::from_ne_bytes([tcp.length, tcp.flags]),
    );
    let front = Front {
        ports: [tcp.source, tcp.destination],
        numbers: [tcp.seq, tcp.ack],
        length_flags: [tcp.length, tcp.flags],
        window: tcp.window,
    };
    ctx.store(at, &front)?;
    if way.ends_ecn != 0 && segment.service & ECN != 0 {
        end_ecn(ctx, segment)?;
    }
    let addresses = match segment.family {
        Family::V4 => addresses4(ctx, (&segment.tuple, segment.ttl), to)?,
        Family::V6 => addresses6(ctx, (&segment.tuple, segment.ttl), to)?,
    };
    ctx.amend_tcp(at + TCP_CHECK, addresses, change)
}

/// The first sixteen bytes of a TCP header.
#[repr(C)]
struct Front {
    ports: [u16; 2],
    numbers: [u32; 2],
    length_flags: [u8; 2],
    window: u16,
}

#[inline(always)]
fn header(segment: &Segment, way: &Way, to: &Tuple) -> Tcp {
    Tcp {
        source: to.destination_port.to_be(),
        destination: to.source_port.to_be(),
        seq: u32::from_be(segment.becomes.seq).wrapping_add(way.seq).to_be(),
        ack: u32::from_be(segment.becomes.ack).wrapping_add(way.ack).to_be(),
        window: window(u16::from_be(segment.becomes.window), way).to_be(),
        ..segment.becomes
    }
}

/// Keeps marks of congestion from a receiver that cannot tell of them (RFC 6040 §4.2). `false`: the packet
/// is to be dropped, as it would have been without ECN.
#[inline(always)]
pub(crate) fn unmark(segment: &mut Segment, way: &Way) -> bool {
    if way.ends_ecn == 0 {
        return true;
    }
    if segment.service & ECN == ECN {
        count(Fate::Marked);
        return false;
    }
    segment.becomes.flags &= !(ECE | CWR);
    true
}

/// Says that the sender has no ECN.
#[inline(always)]
fn end_ecn(ctx: &impl Frame, segment: &Segment) -> Option<()> {
    let service = segment.service as u8;
    let without = service & !(ECN as u8);
    match segment.family {
        Family::V4 => {
            ctx.store(IP4_SERVICE, &without)?;
            let mut change = Change::default();
            change.half(u16::from_ne_bytes([0, service]), u16::from_ne_bytes([0, without]));
            ctx.amend_ip(IP4_CHECK, change)
        }
        Family::V6 => {
            // Version, class and the beginning of the flow label (RFC 8200 §3).
            let old: [u8; 2] = ctx.load(ETHERNET)?;
            let new = [old[0], old[1] & !((ECN as u8) << 4)];
            ctx.store(ETHERNET, &new)
        }
    }
}

/// In the scale that the receiver was told of. Some room stays some room, and no room none.
#[inline(always)]
fn window(window: u16, way: &Way) -> u16 {
    let bytes = u32::from(window) << (way.scale_in & 0xf);
    match bytes >> (way.scale_out & 0xf) {
        0 if bytes > 0 => 1,
        0xffff.. => 0xffff,
        scaled => scaled as u16,
    }
}

#[inline(always)]
pub(crate) fn addresses4(
    ctx: &impl Frame,
    (from, ttl): (&Tuple, u32),
    to: &Tuple,
) -> Option<Change> {
    let mut change = Change::default();
    let new = [unmapped(&to.destination), unmapped(&to.source)];
    change.word(unmapped(&from.source), new[0]);
    change.word(unmapped(&from.destination), new[1]);
    ctx.store(IP4_ADDRESSES, &new)?;
    let ttl = ttl as u8;
    let less = ttl.wrapping_sub(1);
    ctx.store(IP4_TTL, &less)?;
    let mut header = change;
    header.half(u16::from_ne_bytes([ttl, 0]), u16::from_ne_bytes([less, 0]));
    ctx.amend_ip(IP4_CHECK, header)?;
    Some(change)
}

#[inline(always)]
pub(crate) fn addresses6(
    ctx: &impl Frame,
    (from, hops): (&Tuple, u32),
    to: &Tuple,
) -> Option<Change> {
    ctx.store(IP6_HOPS, &(hops as u8).wrapping_sub(1))?;
    let mut change = Change::default();
    let Tuple { source, destination, .. } = from;
    replace(ctx, IP6_ADDRESSES, (source, &to.destination), &mut change)?;
    replace(ctx, IP6_ADDRESSES + 16, (destination, &to.source), &mut change)?;
    Some(change)
}

/// Writes an address of IPv6 at this place.
#[inline(always)]
pub(crate) fn replace(
    ctx: &impl Frame,
    at: u32,
    (old, new): (&[u8; 16], &[u8; 16]),
    change: &mut Change,
) -> Option<()> {
    let sum = store(ctx, at, old, new);
    change.add(sum);
    (sum != FAILED).then_some(())
}

/// No folded sum is as large.
const FAILED: u64 = u64::MAX;

/// Not inlined: all of it at once is too much for the stack.
#[inline(never)]
fn store(ctx: &impl Frame, at: u32, old: &[u8; 16], new: &[u8; 16]) -> u64 {
    if ctx.store(at, new).is_none() {
        return FAILED;
    }
    let (old, new) = (words(old), words(new));
    let mut change = Change::default();
    for word in 0..4 {
        change.word(old[word], new[word]);
    }
    change.folded()
}
