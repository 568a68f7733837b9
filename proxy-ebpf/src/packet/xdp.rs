//! The same translation before there is a socket buffer. What is out of the ordinary, in a flow or in a
//! packet, passes and meets `sni_in`.

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

/// `sni_xdp`.
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
    // SAFETY: takes numbers.
    match unsafe { bpf_redirect(next_hop.ifindex, 0) } as u32 {
        XDP_REDIRECT => XDP_REDIRECT,
        _ => XDP_DROP,
    }
}

/// Whether a checksum has nothing but the pseudo-header in it: the rest was left to a device that the frame
/// has not met (CHECKSUM_PARTIAL, include/linux/skbuff.h), as virtual machines do. Of all others one in
/// 65,536 looks so.
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

/// Whether that interface's driver takes frames from another one, and this frame: one that is in several
/// buffers not every driver does. Otherwise it would be dropped without a word (`xdp_do_redirect`).
#[inline(always)]
fn can_xmit(ctx: &XdpContext, segment: &Segment, next_hop: &NextHop) -> bool {
    let len = segment.tcp_offset - ETH_HLEN + TCP_HLEN + segment.options_len + segment.payload_len;
    next_hop.xmit == XMIT_XDP
        && next_hop.is_resolved != 0
        && len <= next_hop.mtu
        && ETH_HLEN + len <= ctx.length()
}
