//! XDP program, which translates packets of offloaded flows in the driver.
//!
//! It passes all other packets to the kernel, where `sni_in` handles them.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{FlowEntry, PacketCounter, XMIT_XDP};

use super::checksum::ChecksumDiff;
use super::flow_entry;
use super::frame::Frame;
use super::headers::{
    ETH_HLEN, Family, IPPROTO_TCP, SYN, Segment, TCP_HLEN, addr_words, from_v4_mapped,
};
use super::maps::count;
use super::route::NextHop;
use super::scratch::Scratch;
use super::track::track_segment;
use super::translate::{apply_ecn, translate};

/// Entry point of `sni_xdp`.
#[inline(always)]
pub(crate) fn receive(ctx: &XdpContext) -> u32 {
    let Some(scratch) = Scratch::current_cpu() else { return XDP_PASS };
    if scratch.segment.parse(ctx).is_none() {
        return XDP_PASS;
    }
    let segment = &scratch.segment;
    let Some((direction, flow)) = scratch.tuple_cache.find_flow(&segment.tuple) else {
        return XDP_PASS;
    };
    let is_ordinary = segment.is_translatable != 0
        && !segment.has_flags(SYN)
        && segment.ttl > 1
        && !is_checksum_partial(segment);
    match is_ordinary && flow_entry::state(flow).is_translated() {
        true => forward_frame(ctx, scratch, direction, flow),
        false => XDP_PASS,
    }
}

/// Translates a frame and redirects it to its interface.
#[inline(never)]
fn forward_frame(
    ctx: &XdpContext,
    scratch: &mut Scratch,
    direction: Direction,
    flow: *mut FlowEntry,
) -> u32 {
    let Scratch { segment, route_cache, .. } = scratch;
    let (translation, receiver) = flow_entry::borrow(flow).translation(direction);
    let next_hop = route_cache
        .get(ctx, segment.family, receiver)
        .filter(|next_hop| can_xmit(ctx, segment, next_hop));
    let Some(next_hop) = next_hop else { return XDP_PASS };
    if !apply_ecn(segment, translation) {
        return XDP_DROP;
    }
    track_segment(segment, direction, flow, next_hop.now_ns);
    if !translate(ctx, segment, translation, receiver, next_hop) {
        count(PacketCounter::Malformed);
        return XDP_DROP;
    }
    count(PacketCounter::XdpForwarded);
    // SAFETY: the helper has no pointers.
    match unsafe { bpf_redirect(next_hop.ifindex, 0) } as u32 {
        XDP_REDIRECT => XDP_REDIRECT,
        _ => XDP_DROP,
    }
}

/// Whether a checksum covers the pseudo-header only.
///
/// Virtual machines send such frames and leave the rest to a device (CHECKSUM_PARTIAL,
/// include/linux/skbuff.h). One complete checksum in 65,536 also has this value.
#[inline(always)]
fn is_checksum_partial(segment: &Segment) -> bool {
    let len = (TCP_HLEN + segment.options_len + segment.payload_len) as u16;
    let mut pseudo_header = ChecksumDiff::default();
    pseudo_header.add_u32(!0, len.to_be().into());
    pseudo_header.add_u32(!0, u16::from(IPPROTO_TCP).to_be().into());
    for address in [&segment.tuple.source, &segment.tuple.destination] {
        match segment.family {
            Family::V4 => pseudo_header.add_u32(!0, from_v4_mapped(address)),
            Family::V6 => {
                addr_words(address).into_iter().for_each(|word| pseudo_header.add_u32(!0, word))
            }
        }
    }
    pseudo_header.fold16() == segment.tcp.check
}

/// Whether the driver of the next hop accepts this frame from another driver.
///
/// Not every driver accepts a frame in several buffers. `xdp_do_redirect` drops frames that the driver does
/// not accept, without an error.
#[inline(always)]
fn can_xmit(ctx: &XdpContext, segment: &Segment, next_hop: &NextHop) -> bool {
    let len = segment.tcp_offset - ETH_HLEN + TCP_HLEN + segment.options_len + segment.payload_len;
    next_hop.xmit == XMIT_XDP
        && next_hop.is_resolved != 0
        && len <= next_hop.mtu
        && ETH_HLEN + len <= ctx.length()
}
