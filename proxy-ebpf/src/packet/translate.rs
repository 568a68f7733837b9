//! From one leg's numbers to the other's.

use snisplit_common::abi::packet::{Fate, Tuple, Way};

use crate::forward::Route;
use crate::frame::Frame;
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

/// Rewrites a segment for the receiver, whose own packets arrive by the tuple `to`. `false`: it is one
/// that cannot be, or the buffer does not let itself be written.
#[inline(always)]
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

/// The headers are written where they lie: each call costs a packet time.
#[inline(always)]
fn rewrite<Ip: Network>(
    ctx: &impl Frame,
    segment: &Segment,
    (way, to): (&Way, &Tuple),
    route: &Route,
) -> Option<()> {
    let at = Ip::TCP_AT + TCP;
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
    let addresses = ctx.peek::<Ip>(ETHERNET)?.addresses(to);
    let check = Ip::TCP_AT + TCP_CHECK;
    let sum = ctx.readdress(check, segment.tcp.check, addresses)?;
    // Word by word: as a whole the compiler has it copied by a function, byte by byte.
    let [first, second, third] = route.ethernet;
    ctx.put(0, [first, second, third])?;
    ctx.put(PROTOCOL, Ip::PROTOCOL.to_be())?;
    let (ip, change_of_all) =
        ctx.peek::<Ip>(ETHERNET)?.translated(to, way.ends_ecn != 0, addresses);
    ctx.put(ETHERNET, ip)?;
    if has_stamps {
        ctx.put(at, ctx.peek::<Stamps>(at)?.translated(way, &mut change))?;
    }
    let mut tcp = header(segment, way, to);
    change.add(between(&segment.tcp, &tcp).folded());
    tcp.check = sum.with(change);
    ctx.put(Ip::TCP_AT, tcp)?;
    if let Some(change) = change_of_all {
        ctx.sum_up(change);
    }
    if sum.is_in_doubt { ctx.amend(check, change) } else { Some(()) }
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
pub(crate) trait Network: Copy {
    const PROTOCOL: u16;
    const TCP_AT: u32;

    /// What changes in the addresses for whoever's packets arrive by the tuple `to`.
    fn addresses(&self, to: &Tuple) -> Change;

    /// The header for that receiver, with ECN's bits or without; and what changes in a sum of the packet, if
    /// no checksum of the header's own takes it up. With the addresses, which the kernel takes from that sum
    /// for TCP's (`inet_proto_csum_replace_by_diff`): this adds them.
    fn translated(self, to: &Tuple, ends_ecn: bool, addresses: Change) -> (Self, Option<Change>);
}

impl Network for Ip4 {
    const PROTOCOL: u16 = ETH_P_IP;
    const TCP_AT: u32 = TCP4;

    #[inline(always)]
    fn addresses(&self, to: &Tuple) -> Change {
        let mut change = Change::default();
        change.word(self.source, unmapped(&to.destination));
        change.word(self.destination, unmapped(&to.source));
        change
    }

    #[inline(always)]
    fn translated(self, to: &Tuple, ends_ecn: bool, addresses: Change) -> (Self, Option<Change>) {
        let mut new = self;
        new.ttl = self.ttl.wrapping_sub(1);
        (new.source, new.destination) = (unmapped(&to.destination), unmapped(&to.source));
        let mut header = addresses;
        header.half(u16::from_ne_bytes([self.ttl, 0]), u16::from_ne_bytes([new.ttl, 0]));
        if ends_ecn {
            new.service &= !(ECN as u8);
            header
                .half(u16::from_ne_bytes([0, self.service]), u16::from_ne_bytes([0, new.service]));
        }
        new.check = header.applied_to(self.check);
        (new, None)
    }
}

impl Network for Ip6 {
    const PROTOCOL: u16 = ETH_P_IPV6;
    const TCP_AT: u32 = TCP6;

    #[inline(always)]
    fn addresses(&self, to: &Tuple) -> Change {
        let (source, destination) = (words(&to.destination), words(&to.source));
        let mut change = Change::default();
        for word in 0..4 {
            change.word(self.source[word], source[word]);
            change.word(self.destination[word], destination[word]);
        }
        change
    }

    #[inline(always)]
    fn translated(self, to: &Tuple, ends_ecn: bool, addresses: Change) -> (Self, Option<Change>) {
        let mut new = self;
        new.hops = self.hops.wrapping_sub(1);
        (new.source, new.destination) = (words(&to.destination), words(&to.source));
        let mut header = addresses;
        header.half(u16::from_ne_bytes([0, self.hops]), u16::from_ne_bytes([0, new.hops]));
        if ends_ecn {
            new.flow &= !ECN6.to_be();
            header.word(self.flow, new.flow);
        }
        (new, Some(header))
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
