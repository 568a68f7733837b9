//! From one leg's numbers to the other's.

use core::mem::offset_of;

use snisplit_common::abi::packet::{PacketCounter, Translation, Tuple};

use crate::forward::Route;
use crate::frame::{Frame, Front};
use crate::headers::{
    CWR, ECE, ECN, ETH_P_IP, ETH_P_IPV6, ETHERNET, Family, Ip4, Ip6, Segment, TCP, TCP4, TCP6, Tcp,
    unmapped, words,
};
use crate::maps::count;
use crate::options::{self, FAILED};
use crate::stamps::{QUICK, Stamps};
use crate::sum::Change;

/// Where `h_proto` is in an Ethernet header.
const PROTOCOL: u32 = 12;
/// Where the checksum is in a TCP header.
const TCP_CHECK: u32 = 16;
/// Where the ECN bits are in the first word of an IPv6 header: of its traffic class, RFC 8200 §3.
const ECN6: u32 = ECN << 20;

/// A hop in the first of the two bytes that it shares a checksum's word in.
const ONE_HOP: u16 = u16::from_ne_bytes([1, 0]);

/// Rewrites a segment for the receiver, whose own packets arrive by the tuple `to`. `false`: it is one
/// that cannot be, or the buffer does not let itself be written.
#[inline(always)]
pub(crate) fn translate(
    ctx: &impl Frame,
    segment: &Segment,
    way: &Translation,
    to: &Tuple,
    route: &Route,
) -> bool {
    let rewritten = match segment.family {
        Family::V4 => rewrite::<Ip4>(ctx, segment, (way, to), route),
        Family::V6 => rewrite::<Ip6>(ctx, segment, (way, to), route),
    };
    rewritten.is_some()
}

/// The headers are written where they lie: each call costs a packet time.
#[inline(always)]
fn rewrite<Ip: Network>(
    ctx: &impl Frame,
    segment: &Segment,
    (way, to): (&Translation, &Tuple),
    route: &Route,
) -> Option<()> {
    let at = Ip::TCP_AT + TCP;
    let addresses = Ip::addresses(&ctx.reach(at)?, to).narrowed();
    // Most segments have timestamps and nothing else, in the layout of RFC 7323 appendix A.
    let has_stamps = segment.options == QUICK && ctx.peek::<Stamps>(at)?.are_alone();
    let mut change = Change::default();
    if segment.options > 0 && !has_stamps {
        let changed = options::rewrite(ctx, at, segment.options, way);
        if changed == FAILED {
            return None;
        }
        change.add(changed);
    }
    let check = Ip::TCP_AT + TCP_CHECK;
    ctx.readdress(check, addresses)?;
    let mut front = ctx.front(at)?;
    let sum = ctx.readdressed(segment.tcp.check, front.get(check), addresses);
    // Word by word: as a whole the compiler has it copied by a function, byte by byte.
    let [first, second, third] = route.ethernet;
    front.set(0, [first, second, third]);
    front.set(PROTOCOL, Ip::PROTOCOL.to_be());
    let change_of_all = Ip::translate(&mut front, to, way.strip_ecn != 0, addresses);
    if has_stamps {
        let mut front = ctx.front(at + QUICK)?;
        front.set(at, front.get::<Stamps>(at).translated(way, &mut change));
    }
    let old: [u32; 4] = front.get(Ip::TCP_AT);
    let new = header(segment, way, to);
    old.into_iter().zip(new).for_each(|(old, new)| change.word(old, new));
    let [ports, seq, ack, flags] = new;
    let check_urgent = halves(sum.with(change), segment.tcp.urgent);
    front.set(Ip::TCP_AT, [ports, seq, ack, flags, check_urgent]);
    if let Some(change) = change_of_all {
        ctx.sum_up(change);
    }
    if sum.is_in_doubt { ctx.amend(check, change) } else { Some(()) }
}

/// All but its last word. In words as the kernel reads them next (`tcp_flag_word`): for what it has written in
/// pieces a processor waits until they, and whatever it wrote before them, are in its cache.
#[inline(always)]
fn header(segment: &Segment, way: &Translation, to: &Tuple) -> [u32; 4] {
    let Tcp { seq, ack, length, flags, window, .. } = segment.tcp;
    [
        halves(to.destination_port.to_be(), to.source_port.to_be()),
        u32::from_be(seq).wrapping_add(way.seq_delta).to_be(),
        u32::from_be(ack).wrapping_add(way.ack_delta).to_be(),
        halves(u16::from_ne_bytes([length, flags]), scaled(u16::from_be(window), way).to_be()),
    ]
}

/// Two halves of a word, as they stand.
#[inline(always)]
fn halves(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// What differs between IPv4 and IPv6.
pub(crate) trait Network {
    const PROTOCOL: u16;
    const TCP_AT: u32;

    /// What changes in the addresses for whoever's packets arrive by the tuple `to`.
    fn addresses(front: &Front, to: &Tuple) -> Change;

    /// Makes the header one for that receiver, with ECN's bits or without; the answer is what changes in a
    /// sum of the packet, if no checksum of the header's own takes it up. With the addresses, which the kernel
    /// takes from that sum for TCP's (`inet_proto_csum_replace_by_diff`): this adds them.
    fn translate(
        front: &mut Front,
        to: &Tuple,
        ends_ecn: bool,
        addresses: Change,
    ) -> Option<Change>;
}

/// Where a field of the IP header is.
const fn at(field: usize) -> u32 {
    ETHERNET + field as u32
}

impl Network for Ip4 {
    const PROTOCOL: u16 = ETH_P_IP;
    const TCP_AT: u32 = TCP4;

    #[inline(always)]
    fn addresses(front: &Front, to: &Tuple) -> Change {
        let mut change = Change::default();
        change.word(front.get(at(offset_of!(Self, source))), unmapped(&to.destination));
        change.word(front.get(at(offset_of!(Self, destination))), unmapped(&to.source));
        change
    }

    #[inline(always)]
    fn translate(
        front: &mut Front,
        to: &Tuple,
        ends_ecn: bool,
        addresses: Change,
    ) -> Option<Change> {
        let mut header = addresses;
        header.half(ONE_HOP, 0);
        if ends_ecn {
            let service = at(offset_of!(Self, service));
            let [old, new] = [front.get(service), front.get::<u8>(service) & !(ECN as u8)];
            front.set(service, new);
            header.half(u16::from_ne_bytes([0, old]), u16::from_ne_bytes([0, new]));
        }
        // In one word, which `ip_fast_csum` adds up next.
        let place = at(offset_of!(Self, ttl));
        let [ttl, protocol, a, b] = front.get::<u32>(place).to_ne_bytes();
        let check = header.applied_to(u16::from_ne_bytes([a, b]));
        front.set(place, halves(u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]), check));
        front.set(at(offset_of!(Self, source)), [unmapped(&to.destination), unmapped(&to.source)]);
        None
    }
}

impl Network for Ip6 {
    const PROTOCOL: u16 = ETH_P_IPV6;
    const TCP_AT: u32 = TCP6;

    #[inline(always)]
    fn addresses(front: &Front, to: &Tuple) -> Change {
        let mut change = Change::default();
        let places = [offset_of!(Self, source), offset_of!(Self, destination)];
        for (place, new) in places.into_iter().zip([&to.destination, &to.source]) {
            let old: [u32; 4] = front.get(at(place));
            old.into_iter().zip(words(new)).for_each(|(old, new)| change.word(old, new));
        }
        change
    }

    #[inline(always)]
    fn translate(
        front: &mut Front,
        to: &Tuple,
        ends_ecn: bool,
        addresses: Change,
    ) -> Option<Change> {
        let mut header = addresses;
        let hops = at(offset_of!(Self, hops));
        front.set(hops, front.get::<u8>(hops).wrapping_sub(1));
        header.half(ONE_HOP.swap_bytes(), 0);
        if ends_ecn {
            let old: u32 = front.get(at(offset_of!(Self, flow)));
            let new = old & !ECN6.to_be();
            front.set(at(offset_of!(Self, flow)), new);
            header.word(old, new);
        }
        front.set(at(offset_of!(Self, source)), words(&to.destination));
        front.set(at(offset_of!(Self, destination)), words(&to.source));
        Some(header)
    }
}

/// Keeps marks of congestion from a receiver that cannot tell of them (RFC 6040 §4.2). `false`: the packet
/// is to be dropped, as it would have been without ECN.
#[inline(always)]
pub(crate) fn unmark(segment: &mut Segment, way: &Translation) -> bool {
    if way.strip_ecn == 0 {
        return true;
    }
    if segment.service & ECN == ECN {
        count(PacketCounter::EcnDropped);
        return false;
    }
    segment.tcp.flags &= !(ECE | CWR);
    true
}

/// In the scale that the receiver was told of. Some room stays some room, and no room none.
#[inline(always)]
fn scaled(window: u16, way: &Translation) -> u16 {
    let bytes = u32::from(window) << (way.wscale_from & 0xf);
    match bytes >> (way.wscale_to & 0xf) {
        0 if bytes > 0 => 1,
        0xffff.. => 0xffff,
        scaled => scaled as u16,
    }
}
