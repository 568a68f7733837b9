//! From one leg's numbers to the other's.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::packet::{Fate, Tuple, Way};

use crate::forward::Route;
use crate::frame::Frame;
use crate::headers::{
    CWR, ECE, ECN, ETH_P_IP, ETH_P_IPV6, ETHERNET, Family, Ip4, Ip6, Segment, TCP, TCP4, TCP6, Tcp,
    unmapped, words,
};
use crate::maps::count;
use crate::options::Options;
use crate::stamps::{QUICK, Stamps};
use crate::sum::Change;

/// Where the checksum is in a TCP header.
const TCP_CHECK: u32 = 16;
/// Where the ECN bits are in the first word of an IPv6 header: of its traffic class, RFC 8200 §3.
const ECN6: u32 = ECN << 20;

/// Rewrites a segment for the receiver, whose own packets arrive by the tuple `to`. `false`: it is one
/// that cannot be, or the buffer does not let itself be written.
#[inline(never)]
pub(crate) fn translate(
    ctx: &impl Frame,
    segment: &Segment,
    way: &Way,
    to: &Tuple,
    route: &Route,
) -> bool {
    let rewritten = match segment.family {
        Family::V4 => rewrite::<Ip4>(ctx, segment, (way, to), route),
        Family::V6 => rewrite::<Ip6>(ctx, segment, (way, to), route),
    };
    rewritten.is_some()
}

/// The headers of a frame, which are written at once: each call costs a packet time. In a map, for they are
/// too much for the stack.
#[repr(C, align(4))]
struct Head<Ip> {
    /// Not written: what is behind it is aligned so.
    ahead: u16,
    ethernet: [u16; 6],
    protocol: u16,
    ip: Ip,
    tcp: Tcp,
    stamps: Stamps,
}

/// This CPU's, with room for either family.
#[btf_map(name = "packet_head")]
static WORK: PerCpuArray<Head<Ip6>, 1> = PerCpuArray::new();

impl<Ip: Network> Head<Ip> {
    #[inline(always)]
    fn work() -> Option<&'static mut Self> {
        const { assert!(size_of::<Self>() <= size_of::<Head<Ip6>>()) };
        // SAFETY: the slot is this CPU's, never goes, is as large, and is used by one function at a time; of
        // numbers every bit pattern is one.
        WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work.cast::<Self>() })
    }
}

#[inline(always)]
fn rewrite<Ip: Network>(
    ctx: &impl Frame,
    segment: &Segment,
    (way, to): (&Way, &Tuple),
    route: &Route,
) -> Option<()> {
    let head = Head::<Ip>::work()?;
    let (ip, addresses) = Ip::translated(ctx, to, way.ends_ecn != 0)?;
    (head.ethernet, head.protocol, head.ip) = (route.ethernet, Ip::PROTOCOL.to_be(), ip);
    head.tcp = header(segment, way, to);
    let mut change = between(&segment.tcp, &head.tcp);
    let mut length = ETHERNET + size_of::<Ip>() as u32 + TCP;
    // Most segments have timestamps and nothing else, in the layout of RFC 7323 appendix A.
    let quick = match segment.options {
        QUICK => ctx.peek::<Stamps>(Ip::TCP_AT + TCP)?.translated(way, &mut change),
        _ => None,
    };
    if let Some(stamps) = quick {
        head.stamps = stamps;
        length += QUICK;
    } else {
        let options = Options::read(ctx, Ip::TCP_AT + TCP, segment.options)?;
        change.add(options.translate(way)?.folded());
        options.write(ctx, Ip::TCP_AT + TCP)?;
    }
    // SAFETY: `length` bytes at most are behind the first field.
    let is_written = unsafe { ctx.copy_in(0, (&raw const head.ethernet).cast(), length) };
    if !is_written {
        return None;
    }
    ctx.amend_tcp(Ip::TCP_AT + TCP_CHECK, addresses, change)
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

#[inline(always)]
fn between(old: &Tcp, new: &Tcp) -> Change {
    let mut change = Change::default();
    change.half(old.source, new.source);
    change.half(old.destination, new.destination);
    change.word(old.seq, new.seq);
    change.word(old.ack, new.ack);
    change.half(old.window, new.window);
    change.half(
        u16::from_ne_bytes([old.length, old.flags]),
        u16::from_ne_bytes([new.length, new.flags]),
    );
    change
}

/// What differs between IPv4 and IPv6.
pub(crate) trait Network: Sized + 'static {
    const PROTOCOL: u16;
    const TCP_AT: u32;

    /// The frame's header for whoever's packets arrive by the tuple `to`, with ECN's bits or without, and
    /// what changes in the addresses.
    fn translated(ctx: &impl Frame, to: &Tuple, ends_ecn: bool) -> Option<(Self, Change)>;
}

impl Network for Ip4 {
    const PROTOCOL: u16 = ETH_P_IP;
    const TCP_AT: u32 = TCP4;

    #[inline(always)]
    fn translated(ctx: &impl Frame, to: &Tuple, ends_ecn: bool) -> Option<(Self, Change)> {
        let old: Self = ctx.peek(ETHERNET)?;
        let mut new = old;
        new.ttl = old.ttl.wrapping_sub(1);
        (new.source, new.destination) = (unmapped(&to.destination), unmapped(&to.source));
        let mut addresses = Change::default();
        addresses.word(old.source, new.source);
        addresses.word(old.destination, new.destination);
        let mut header = addresses;
        header.half(u16::from_ne_bytes([old.ttl, 0]), u16::from_ne_bytes([new.ttl, 0]));
        if ends_ecn {
            new.service &= !(ECN as u8);
            header.half(u16::from_ne_bytes([0, old.service]), u16::from_ne_bytes([0, new.service]));
        }
        new.check = header.applied_to(old.check);
        Some((new, addresses))
    }
}

impl Network for Ip6 {
    const PROTOCOL: u16 = ETH_P_IPV6;
    const TCP_AT: u32 = TCP6;

    #[inline(always)]
    fn translated(ctx: &impl Frame, to: &Tuple, ends_ecn: bool) -> Option<(Self, Change)> {
        let old: Self = ctx.peek(ETHERNET)?;
        let mut new = old;
        new.hops = old.hops.wrapping_sub(1);
        (new.source, new.destination) = (words(&to.destination), words(&to.source));
        if ends_ecn {
            new.flow &= !ECN6.to_be();
        }
        let mut addresses = Change::default();
        for word in 0..4 {
            addresses.word(old.source[word], new.source[word]);
            addresses.word(old.destination[word], new.destination[word]);
        }
        Some((new, addresses))
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
