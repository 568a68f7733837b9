//! The same translation before there is a socket buffer. What is out of the ordinary, in a flow or in a
//! packet, passes and meets `sni_in`.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{FlowEntry, PacketCounter, XMIT_XDP};

use crate::cas;
use crate::forward::Route;
use crate::frame::Frame;
use crate::headers::{ETHERNET, Family, IPPROTO_TCP, SYN, Segment, TCP, unmapped, words};
use crate::maps::count;
use crate::sum::Change;
use crate::track::track;
use crate::translate::{translate, unmark};
use crate::work::Work;

#[xdp(frags)]
fn sni_early(ctx: XdpContext) -> u32 {
    let Some(work) = Work::get() else { return XDP_PASS };
    if work.segment.read(&ctx).is_none() {
        return XDP_PASS;
    }
    let segment = &work.segment;
    let Some((direction, splice)) = work.legs.find(&segment.tuple) else { return XDP_PASS };
    let is_ordinary =
        segment.is_whole != 0 && !segment.has(SYN) && segment.ttl > 1 && !is_partial(segment);
    match is_ordinary && cas::state(splice).is_translated() {
        true => forward(&ctx, work, direction, splice),
        false => XDP_PASS,
    }
}

#[inline(never)]
fn forward(ctx: &XdpContext, work: &mut Work, direction: Direction, splice: *mut FlowEntry) -> u32 {
    let Work { segment, ways, .. } = work;
    // SAFETY: the entry lives until this program ends, and what is translated by does not change.
    let (way, to) = unsafe { &*splice }.translation(direction);
    let route = ways.to(ctx, segment.family, to).filter(|route| takes(ctx, segment, route));
    let Some(route) = route else { return XDP_PASS };
    if !unmark(segment, way) {
        return XDP_DROP;
    }
    track(segment, direction, splice, route.now);
    if !translate(ctx, segment, way, to, route) {
        count(PacketCounter::Malformed);
        return XDP_DROP;
    }
    count(PacketCounter::XdpForwarded);
    // SAFETY: takes numbers.
    match unsafe { bpf_redirect(route.interface, 0) } as u32 {
        XDP_REDIRECT => XDP_REDIRECT,
        _ => XDP_DROP,
    }
}

/// Whether a checksum has nothing but the pseudo-header in it: the rest was left to a device that the frame
/// has not met (CHECKSUM_PARTIAL, include/linux/skbuff.h), as virtual machines do. Of all others one in
/// 65,536 looks so.
#[inline(always)]
fn is_partial(segment: &Segment) -> bool {
    let length = (TCP + segment.options + segment.payload) as u16;
    let mut pseudo = Change::default();
    pseudo.word(!0, length.to_be().into());
    pseudo.word(!0, u16::from(IPPROTO_TCP).to_be().into());
    for address in [&segment.tuple.source, &segment.tuple.destination] {
        match segment.family {
            Family::V4 => pseudo.word(!0, unmapped(address)),
            Family::V6 => words(address).into_iter().for_each(|word| pseudo.word(!0, word)),
        }
    }
    pseudo.half_word() == segment.tcp.check
}

/// Whether that interface's driver takes frames from another one, and this frame: one that is in several
/// buffers not every driver does. Otherwise it would be dropped without a word (`xdp_do_redirect`).
#[inline(always)]
fn takes(ctx: &XdpContext, segment: &Segment, route: &Route) -> bool {
    let length = segment.at - ETHERNET + TCP + segment.options + segment.payload;
    route.way_out == XMIT_XDP
        && route.is_resolved != 0
        && length <= route.mtu
        && ETHERNET + length <= ctx.length()
}
