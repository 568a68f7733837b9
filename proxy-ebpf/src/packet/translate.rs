//! Translation of a segment from one TCP connection of a flow to the other.

use core::mem::offset_of;

use snisplit_common::abi::packet::{PacketCounter, Translation, Tuple};

use super::checksum::ChecksumDiff;
use super::frame::{Frame, LinearData};
use super::headers::{
    CWR, ECE, ETH_HLEN, ETH_P_IP, ETH_P_IPV6, Family, INET_ECN_MASK, Ipv4Header, Ipv6Header,
    Segment, TCP_HLEN, TCP_OFFSET_V4, TCP_OFFSET_V6, TcpHeader, addr_words, from_v4_mapped,
};
use super::maps::count;
use super::options::{self, REWRITE_FAILED};
use super::route::NextHop;
use super::tcp_timestamps::{TS_ONLY_LEN, Timestamps};

/// Offset of `h_proto` in an Ethernet header.
const ETH_PROTO_OFFSET: u32 = 12;
/// Offset of the checksum in a TCP header.
const TCP_CHECK_OFFSET: u32 = 16;
/// ECN bits in the first word of an IPv6 header. They are part of the traffic class (RFC 8200 §3).
const IPV6_ECN_MASK: u32 = INET_ECN_MASK << 20;

/// One hop in the 16-bit word that holds the TTL in its first byte.
const TTL_DECREMENT: u16 = u16::from_ne_bytes([1, 0]);

/// Rewrites a segment for a receiver, and returns whether that succeeded. `receiver` is the tuple of packets
/// that arrive from it.
///
/// It fails if the options are malformed or the buffer is not writable.
#[inline(always)]
pub(super) fn translate(
    ctx: &impl Frame,
    segment: &Segment,
    translation: &Translation,
    receiver: &Tuple,
    next_hop: &NextHop,
) -> bool {
    let rewritten = match segment.family {
        Family::V4 => rewrite_headers::<Ipv4Header>(ctx, segment, translation, receiver, next_hop),
        Family::V6 => rewrite_headers::<Ipv6Header>(ctx, segment, translation, receiver, next_hop),
    };
    rewritten.is_some()
}

/// Rewrites the headers in place, because each helper call costs time.
#[inline(always)]
fn rewrite_headers<Ip: IpHeader>(
    ctx: &impl Frame,
    segment: &Segment,
    translation: &Translation,
    receiver: &Tuple,
    next_hop: &NextHop,
) -> Option<()> {
    let options_offset = Ip::TCP_OFFSET + TCP_HLEN;
    let addresses = Ip::address_diff(&ctx.pull_linear(options_offset)?, receiver).reduced();
    // Most segments have timestamps and nothing else, in the layout of RFC 7323 appendix A.
    let has_only_timestamps = segment.options_len == TS_ONLY_LEN
        && ctx.peek::<Timestamps>(options_offset)?.is_only_option();
    let mut change = ChecksumDiff::default();
    if segment.options_len > 0 && !has_only_timestamps {
        let rewritten =
            options::rewrite_options(ctx, options_offset, segment.options_len, translation);
        if rewritten == REWRITE_FAILED {
            return None;
        }
        change.add_folded(rewritten);
    }
    let check_offset = Ip::TCP_OFFSET + TCP_CHECK_OFFSET;
    ctx.csum_replace_pseudo(check_offset, addresses)?;
    let mut linear = ctx.linear(options_offset)?;
    let checksum = ctx.csum_replaced(segment.tcp.check, linear.get(check_offset), addresses);
    // Word by word: for the whole array the compiler would call a function that copies single bytes.
    let [first, second, third] = next_hop.eth_addrs;
    linear.set(0, [first, second, third]);
    linear.set(ETH_PROTO_OFFSET, Ip::ETHERTYPE.to_be());
    let packet_diff = Ip::translate(&mut linear, receiver, translation.strip_ecn != 0, addresses);
    if has_only_timestamps {
        let mut linear = ctx.linear(options_offset + TS_ONLY_LEN)?;
        linear.set(
            options_offset,
            linear.get::<Timestamps>(options_offset).translated(translation, &mut change),
        );
    }
    let old: [u32; 4] = linear.get(Ip::TCP_OFFSET);
    let new = tcp_header_words(segment, translation, receiver);
    old.into_iter().zip(new).for_each(|(old, new)| change.add_u32(old, new));
    let [ports, seq, ack, flags] = new;
    let check_and_urgent = concat_u16(checksum.updated(change), segment.tcp.urgent_pointer);
    linear.set(Ip::TCP_OFFSET, [ports, seq, ack, flags, check_and_urgent]);
    if let Some(diff) = packet_diff {
        ctx.csum_update(diff);
    }
    if checksum.is_ambiguous { ctx.csum_replace(check_offset, change) } else { Some(()) }
}

/// Returns the first four words of the translated TCP header.
///
/// The kernel reads these words next (`tcp_flag_word`). If they were written in smaller pieces, the
/// processor could not forward the stores and would wait for its store buffer.
#[inline(always)]
fn tcp_header_words(segment: &Segment, translation: &Translation, receiver: &Tuple) -> [u32; 4] {
    let TcpHeader { seq, ack, data_offset, flags, window, .. } = segment.tcp;
    [
        concat_u16(receiver.destination_port.to_be(), receiver.source_port.to_be()),
        u32::from_be(seq).wrapping_add(translation.seq_delta).to_be(),
        u32::from_be(ack).wrapping_add(translation.ack_delta).to_be(),
        concat_u16(
            u16::from_ne_bytes([data_offset, flags]),
            rescale_window(u16::from_be(window), translation).to_be(),
        ),
    ]
}

/// Returns the word that two halves make in memory.
#[inline(always)]
fn concat_u16(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Operations that differ between IPv4 and IPv6.
pub(super) trait IpHeader {
    /// Value of `h_proto`, in host byte order.
    const ETHERTYPE: u16;
    /// Offset of the TCP header in the frame.
    const TCP_OFFSET: u32;

    /// Returns the change of the checksum by the addresses for a receiver.
    fn address_diff(linear: &LinearData, receiver: &Tuple) -> ChecksumDiff;

    /// Rewrites the IP header for a receiver, without ECN bits if `strip_ecn` is set.
    ///
    /// Returns the change of a sum over the packet, if the header has no checksum that covers it. It includes
    /// the addresses: the kernel has subtracted these for TCP (`inet_proto_csum_replace_by_diff`).
    fn translate(
        linear: &mut LinearData,
        receiver: &Tuple,
        strip_ecn: bool,
        addresses: ChecksumDiff,
    ) -> Option<ChecksumDiff>;
}

/// Returns the offset of a field of the IP header in the frame.
const fn field_offset(field: usize) -> u32 {
    ETH_HLEN + field as u32
}

impl IpHeader for Ipv4Header {
    const ETHERTYPE: u16 = ETH_P_IP;
    const TCP_OFFSET: u32 = TCP_OFFSET_V4;

    #[inline(always)]
    fn address_diff(linear: &LinearData, receiver: &Tuple) -> ChecksumDiff {
        let mut change = ChecksumDiff::default();
        change.add_u32(
            linear.get(field_offset(offset_of!(Self, source))),
            from_v4_mapped(&receiver.destination),
        );
        change.add_u32(
            linear.get(field_offset(offset_of!(Self, destination))),
            from_v4_mapped(&receiver.source),
        );
        change
    }

    #[inline(always)]
    fn translate(
        linear: &mut LinearData,
        receiver: &Tuple,
        strip_ecn: bool,
        addresses: ChecksumDiff,
    ) -> Option<ChecksumDiff> {
        let mut diff = addresses;
        diff.add_u16(TTL_DECREMENT, 0);
        if strip_ecn {
            let tos = field_offset(offset_of!(Self, tos));
            let [old, new] = [linear.get(tos), linear.get::<u8>(tos) & !(INET_ECN_MASK as u8)];
            linear.set(tos, new);
            diff.add_u16(u16::from_ne_bytes([0, old]), u16::from_ne_bytes([0, new]));
        }
        // In one word, because `ip_fast_csum` reads this word next.
        let offset = field_offset(offset_of!(Self, ttl));
        let [ttl, protocol, a, b] = linear.get::<u32>(offset).to_ne_bytes();
        let check = diff.apply_to_checksum(u16::from_ne_bytes([a, b]));
        linear.set(offset, concat_u16(u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]), check));
        linear.set(
            field_offset(offset_of!(Self, source)),
            [from_v4_mapped(&receiver.destination), from_v4_mapped(&receiver.source)],
        );
        None
    }
}

impl IpHeader for Ipv6Header {
    const ETHERTYPE: u16 = ETH_P_IPV6;
    const TCP_OFFSET: u32 = TCP_OFFSET_V6;

    #[inline(always)]
    fn address_diff(linear: &LinearData, receiver: &Tuple) -> ChecksumDiff {
        let mut change = ChecksumDiff::default();
        let offsets = [offset_of!(Self, source), offset_of!(Self, destination)];
        for (offset, new) in offsets.into_iter().zip([&receiver.destination, &receiver.source]) {
            let old: [u32; 4] = linear.get(field_offset(offset));
            old.into_iter().zip(addr_words(new)).for_each(|(old, new)| change.add_u32(old, new));
        }
        change
    }

    #[inline(always)]
    fn translate(
        linear: &mut LinearData,
        receiver: &Tuple,
        strip_ecn: bool,
        addresses: ChecksumDiff,
    ) -> Option<ChecksumDiff> {
        let mut diff = addresses;
        let hop_limit = field_offset(offset_of!(Self, hop_limit));
        linear.set(hop_limit, linear.get::<u8>(hop_limit).wrapping_sub(1));
        diff.add_u16(TTL_DECREMENT.swap_bytes(), 0);
        if strip_ecn {
            let old: u32 = linear.get(field_offset(offset_of!(Self, version_tc_flow)));
            let new = old & !IPV6_ECN_MASK.to_be();
            linear.set(field_offset(offset_of!(Self, version_tc_flow)), new);
            diff.add_u32(old, new);
        }
        linear.set(field_offset(offset_of!(Self, source)), addr_words(&receiver.destination));
        linear.set(field_offset(offset_of!(Self, destination)), addr_words(&receiver.source));
        Some(diff)
    }
}

/// Removes ECN flags for a receiver that does not use ECN. `false`: drop the packet, because it has a
/// congestion mark that the receiver cannot report (RFC 6040 §4.2).
#[inline(always)]
pub(super) fn apply_ecn(segment: &mut Segment, translation: &Translation) -> bool {
    if translation.strip_ecn == 0 {
        return true;
    }
    if segment.traffic_class & INET_ECN_MASK == INET_ECN_MASK {
        count(PacketCounter::EcnDropped);
        return false;
    }
    segment.tcp.flags &= !(ECE | CWR);
    true
}

/// Converts a window to the scale that the receiver was told. A non-zero window stays non-zero.
#[inline(always)]
fn rescale_window(window: u16, translation: &Translation) -> u16 {
    let bytes = u32::from(window) << (translation.wscale_from & 0xf);
    match bytes >> (translation.wscale_to & 0xf) {
        0 if bytes > 0 => 1,
        0xffff.. => 0xffff,
        scaled => scaled as u16,
    }
}
