//! Translation of ICMP errors about translated packets.
//!
//! The sender of the packet must receive the error, or path MTU discovery fails (RFC 1191, RFC 8201).
//! The program rewrites the quoted packet to the packet that the sender has sent.

use aya_ebpf::bindings::BPF_F_PSEUDO_HDR;
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{PacketCounter, Translation, Tuple};

use super::action::{TC_ACT_SHOT, TCX_NEXT};
use super::checksum::ChecksumDiff;
use super::flow_entry;
use super::frame::Frame;
use super::headers::{
    ETH_HLEN, Family, IPPROTO_TCP, Ipv4Header, Ipv6Header, Segment, TcpHeader, addr_words, family,
    from_v4_mapped, store_addr, store_v4_mapped,
};
use super::lookup::find_flow;
use super::maps::count;
use super::options::REWRITE_FAILED;
use super::route::redirect;
use super::scratch::Scratch;
use super::track::is_within;
use super::translate::IpHeader as _;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_ICMPV6: u8 = 58;
/// ICMP type: destination unreachable, or fragmentation needed.
const ICMP_DEST_UNREACH: u8 = 3;
/// ICMPv6 types: destination unreachable, and packet too big.
const ICMPV6_DEST_UNREACH: u8 = 1;
const ICMPV6_PKT_TOOBIG: u8 = 2;
/// Size of the ICMP header in bytes, before the quoted packet.
const ICMP_HLEN: u32 = 8;
/// Offset of the checksum in the ICMP header.
const ICMP_CHECK_OFFSET: u32 = 2;

/// First eight bytes of a TCP header. Each ICMP error quotes at least these (RFC 792).
#[repr(C)]
struct QuotedTcp {
    source: u16,
    destination: u16,
    seq: u32,
}

/// Offsets of the quoted packet, and of the TCP header in it.
const QUOTED_OFFSET_V4: u32 = ETH_HLEN + 20 + ICMP_HLEN;
const QUOTED_TCP_OFFSET_V4: u32 = QUOTED_OFFSET_V4 + 20;
const QUOTED_OFFSET_V6: u32 = ETH_HLEN + 40 + ICMP_HLEN;
const QUOTED_TCP_OFFSET_V6: u32 = QUOTED_OFFSET_V6 + 40;

/// Forwards a packet that is not TCP, if it is an ICMP error about a packet of a flow.
#[inline(never)]
pub(super) fn forward_error(ctx: &TcContext, scratch: &mut Scratch) -> i32 {
    translate_error(ctx, scratch).unwrap_or(TCX_NEXT)
}

/// Returns the action for the packet. `None`: it is not an ICMP error about a flow.
#[inline(always)]
fn translate_error(ctx: &TcContext, scratch: &mut Scratch) -> Option<i32> {
    let Scratch { segment: quoted, route_cache, .. } = scratch;
    let family = family(ctx)?;
    let (is_error, tcp_offset) = match family {
        Family::V4 => (parse_icmpv4(ctx, quoted), QUOTED_TCP_OFFSET_V4),
        Family::V6 => (parse_icmpv6(ctx, quoted), QUOTED_TCP_OFFSET_V6),
    };
    if !is_error {
        return None;
    }
    quoted.family = family;
    quoted.tcp_offset = tcp_offset;
    quoted.tcp =
        ctx.load(tcp_offset as usize).or_else(|_| read_quoted_tcp(ctx, tcp_offset)).ok()?;
    // This host sent the quoted packet to a peer. Its tuple with the ends swapped is that of the answers.
    quoted.tuple.source_port = u16::from_be(quoted.tcp.destination);
    quoted.tuple.destination_port = u16::from_be(quoted.tcp.source);
    let (direction, flow) = find_flow(&quoted.tuple)?;
    if !flow_entry::state(flow).is_translated() {
        return None;
    }
    let entry = flow_entry::borrow(flow);
    // The packet to one peer came from the other peer.
    let (translation, sender, sender_state, receiver_state) = match direction {
        Direction::Up => {
            (&entry.to_client, &entry.backend_tuple, &entry.backend_state, &entry.client_state)
        }
        Direction::Down => {
            (&entry.to_backend, &entry.client_tuple, &entry.client_state, &entry.backend_state)
        }
    };
    let seq = quoted.seq().wrapping_sub(translation.seq_delta);
    if !is_within(seq, receiver_state.acked_seq, sender_state.snd_nxt) {
        // RFC 5927 §4.1: the quoted bytes are not in flight.
        return None;
    }
    let next_hop = route_cache.get(ctx, family, sender)?;
    let is_rewritten = Frame::store(ctx, 0, &next_hop.eth_addrs).is_some()
        && rewrite_error(ctx, quoted, translation, sender);
    count(if is_rewritten { PacketCounter::IcmpForwarded } else { PacketCounter::Malformed });
    Some(if is_rewritten { redirect(next_hop) } else { TC_ACT_SHOT })
}

/// Reads the part of a quoted TCP header that each ICMP error has (RFC 792).
#[inline(always)]
fn read_quoted_tcp(ctx: &TcContext, tcp_offset: u32) -> Result<TcpHeader, i64> {
    let QuotedTcp { source, destination, seq } = ctx.load(tcp_offset as usize)?;
    let header = TcpHeader {
        source,
        destination,
        seq,
        ack: 0,
        data_offset: 0,
        flags: 0,
        window: 0,
        check: 0,
        urgent_pointer: 0,
    };
    Ok(header)
}

/// Whether it is an ICMP error about a TCP packet. Stores the addresses of that packet in `quoted`.
#[inline(never)]
fn parse_icmpv4(ctx: &TcContext, quoted: &mut Segment) -> bool {
    let Ok(outer) = ctx.load::<Ipv4Header>(ETH_HLEN as usize) else { return false };
    let Ok(kind) = ctx.load::<u8>((ETH_HLEN + 20) as usize) else { return false };
    if outer.protocol != IPPROTO_ICMP || outer.version_ihl != 0x45 || kind != ICMP_DEST_UNREACH {
        return false;
    }
    let Ok(inner) = ctx.load::<Ipv4Header>(QUOTED_OFFSET_V4 as usize) else { return false };
    store_v4_mapped(&mut quoted.tuple.source, inner.destination);
    store_v4_mapped(&mut quoted.tuple.destination, inner.source);
    inner.protocol == IPPROTO_TCP && inner.version_ihl == 0x45 && outer.ttl > 1
}

/// Whether it is an ICMPv6 error about a TCP packet. Stores the addresses of that packet in `quoted`.
#[inline(never)]
fn parse_icmpv6(ctx: &TcContext, quoted: &mut Segment) -> bool {
    let Ok(outer) = ctx.load::<Ipv6Header>(ETH_HLEN as usize) else { return false };
    let Ok(kind) = ctx.load::<u8>((ETH_HLEN + 40) as usize) else { return false };
    if outer.next_header != IPPROTO_ICMPV6
        || !(kind == ICMPV6_DEST_UNREACH || kind == ICMPV6_PKT_TOOBIG)
    {
        return false;
    }
    let Ok(inner) = ctx.load::<Ipv6Header>(QUOTED_OFFSET_V6 as usize) else { return false };
    store_addr(&mut quoted.tuple.source, inner.destination);
    store_addr(&mut quoted.tuple.destination, inner.source);
    inner.next_header == IPPROTO_TCP && outer.hop_limit > 1
}

/// Rewrites the quoted packet to the one that `sender` has sent, and addresses the error to `sender`.
#[inline(always)]
fn rewrite_error(
    ctx: &TcContext,
    quoted: &Segment,
    translation: &Translation,
    sender: &Tuple,
) -> bool {
    let old = &quoted.tcp;
    let new = QuotedTcp {
        source: sender.source_port.to_be(),
        destination: sender.destination_port.to_be(),
        seq: quoted.seq().wrapping_sub(translation.seq_delta).to_be(),
    };
    let mut change = ChecksumDiff::default();
    change.add_u16(old.source, new.source);
    change.add_u16(old.destination, new.destination);
    change.add_u32(old.seq, new.seq);
    let is_stored = ctx.store(quoted.tcp_offset as usize, &new, 0).is_ok();
    is_stored
        && match quoted.family {
            Family::V4 => rewrite_ipv4(ctx, quoted, sender, change.fold32()),
            Family::V6 => rewrite_ipv6(ctx, quoted, sender, change.fold32()),
        }
}

#[inline(never)]
fn rewrite_ipv4(ctx: &TcContext, quoted: &Segment, sender: &Tuple, change: u64) -> bool {
    // The checksum of the quoted IP header covers its changes, so the ICMP checksum does not change by them.
    let new = [from_v4_mapped(&sender.source), from_v4_mapped(&sender.destination)];
    let mut inner = ChecksumDiff::default();
    inner.add_u32(from_v4_mapped(&quoted.tuple.destination), new[0]);
    inner.add_u32(from_v4_mapped(&quoted.tuple.source), new[1]);
    let check = (ETH_HLEN + 20 + ICMP_CHECK_OFFSET) as usize;
    let is_quoted = ctx.store((QUOTED_OFFSET_V4 + 12) as usize, &new, 0).is_ok()
        && ctx.l3_csum_replace((QUOTED_OFFSET_V4 + 10) as usize, 0, inner.fold32(), 0).is_ok()
        && ctx.l4_csum_replace(check, 0, change, 0).is_ok();
    let Some(mut outer) = ctx.pull_linear(QUOTED_OFFSET_V4) else { return false };
    let addresses = Ipv4Header::address_diff(&outer, sender);
    Ipv4Header::translate(&mut outer, sender, false, addresses);
    is_quoted
}

#[inline(never)]
fn rewrite_ipv6(ctx: &TcContext, quoted: &Segment, sender: &Tuple, ports: u64) -> bool {
    let mut change = ChecksumDiff::from_folded(ports);
    let inner = &quoted.tuple;
    let is_quoted =
        replace_addr(ctx, QUOTED_OFFSET_V6 + 8, &inner.destination, &sender.source, &mut change)
            && replace_addr(
                ctx,
                QUOTED_OFFSET_V6 + 24,
                &inner.source,
                &sender.destination,
                &mut change,
            );
    let Some(mut outer) = ctx.pull_linear(QUOTED_OFFSET_V6) else { return false };
    let addresses = Ipv6Header::address_diff(&outer, sender);
    let packet_diff = Ipv6Header::translate(&mut outer, sender, false, addresses);
    let check = (ETH_HLEN + 40 + ICMP_CHECK_OFFSET) as usize;
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    if let Some(change) = packet_diff {
        ctx.csum_update(change);
    }
    is_quoted
        && ctx.l4_csum_replace(check, 0, addresses.fold32(), pseudo).is_ok()
        && ctx.l4_csum_replace(check, 0, change.fold32(), 0).is_ok()
}

/// Replaces an IPv6 address, and adds the change to a checksum change.
#[inline(always)]
fn replace_addr(
    ctx: &TcContext,
    offset: u32,
    old: &[u8; 16],
    new: &[u8; 16],
    change: &mut ChecksumDiff,
) -> bool {
    let sum = store_addr_diff(ctx, offset, old, new);
    change.add_folded(sum);
    sum != REWRITE_FAILED
}

/// Stores an IPv6 address, and returns the folded change of the checksum. It is not inlined because the
/// stack is too small for both calls at once.
#[inline(never)]
fn store_addr_diff(ctx: &TcContext, offset: u32, old: &[u8; 16], new: &[u8; 16]) -> u64 {
    if ctx.store(offset as usize, new, 0).is_err() {
        return REWRITE_FAILED;
    }
    let (old, new) = (addr_words(old), addr_words(new));
    let mut change = ChecksumDiff::default();
    for word in 0..4 {
        change.add_u32(old[word], new[word]);
    }
    change.fold32()
}
