//! The programs at interfaces.

use aya_ebpf::programs::TcContext;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{
    ControlCommand, FallbackReason, FlowEntry, FlowState, PacketCounter, Tuple,
};

use super::action::{TC_ACT_SHOT, TCX_NEXT};
use super::headers::{self, ACK, FIN, RST, SYN};
use super::lookup::find_flow;
use super::maps::{FLOWS, TUPLES, count, emit_state};
use super::scratch::Scratch;
use super::{flow_entry, icmp, route, syn_clamp, takeover, track, translate};

/// `sni_in`.
#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> i32 {
    let Some(scratch) = Scratch::current_cpu() else { return TCX_NEXT };
    if scratch.segment.parse(ctx).is_none() {
        return icmp::forward_error(ctx, scratch);
    }
    let Some((direction, flow)) = scratch.tuple_cache.find_flow(&scratch.segment.tuple) else {
        return TCX_NEXT;
    };
    let is_offloaded = match flow_entry::state(flow) {
        FlowState::Pending => try_take_over(ctx, scratch, direction, flow),
        FlowState::TakingOver => {
            count(PacketCounter::DroppedInTakeover);
            return TC_ACT_SHOT;
        }
        FlowState::Fallback => false,
        FlowState::Offloaded
        | FlowState::Closed
        | FlowState::ClientReset
        | FlowState::BackendReset => true,
    };
    if is_offloaded { forward_segment(ctx, scratch, direction, flow) } else { TCX_NEXT }
}

/// `sni_out`.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> i32 {
    // SAFETY: the context that the kernel gave us.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } != 0 {
        // Sent on, perhaps by us.
        return TCX_NEXT;
    }
    let Some(Scratch { segment, .. }) = Scratch::current_cpu() else { return TCX_NEXT };
    if segment.parse(ctx).is_none() {
        return TCX_NEXT;
    }
    segment.swap_ends();
    if segment.tcp.flags & (SYN | ACK) == SYN {
        evict_closed(&segment.tuple);
        syn_clamp::clamp_syn(ctx, segment);
        return TCX_NEXT;
    }
    let Some((_, flow)) = find_flow(&segment.tuple) else { return TCX_NEXT };
    if flow_entry::state(flow) == FlowState::Pending {
        if segment.has_flags(FIN) || segment.has_flags(RST) {
            fall_back(flow, FallbackReason::FlowEnded);
        }
        // A barrier: what a socket has received is seen by the CPU that switches, or the switch is seen
        // here.
        if flow_entry::compare_exchange_state(flow, FlowState::Pending, FlowState::Pending) {
            return TCX_NEXT;
        }
    }
    match flow_entry::state(flow) {
        FlowState::Fallback => TCX_NEXT,
        _ => {
            count(PacketCounter::Suppressed);
            TC_ACT_SHOT
        }
    }
}

/// Its packet is the slot of a flow and what is wanted of it, behind room for an Ethernet header. The
/// answer is the state that the flow is in.
#[inline(always)]
pub(crate) fn control(ctx: &TcContext) -> i32 {
    let offset = headers::ETH_HLEN as usize;
    let Ok(slot) = ctx.load::<u64>(offset) else { return TCX_NEXT };
    let Ok(command) = ctx.load::<u64>(offset + size_of::<u64>()) else { return TCX_NEXT };
    let Some(flow) = FLOWS.get_ptr_mut(slot as u32) else { return TCX_NEXT };
    if command == ControlCommand::Release as u64 {
        flow_entry::compare_exchange_state(flow, FlowState::Pending, FlowState::Fallback);
        flow_entry::compare_exchange_state(flow, FlowState::Offloaded, FlowState::Fallback);
    } else {
        fall_back(flow, FallbackReason::Requested);
    }
    flow_entry::state(flow) as i32
}

/// Leaves a flow to its sockets, if nobody has decided yet.
fn fall_back(flow: *mut FlowEntry, reason: FallbackReason) {
    if flow_entry::compare_exchange_state(flow, FlowState::Pending, FlowState::Fallback) {
        flow_entry::borrow_mut(flow).fallback_reason = reason;
        emit_state(flow_entry::id(flow), FlowState::Fallback);
    }
}

/// What is left of a flow goes when another connection leaves by its port.
#[inline(never)]
fn evict_closed(tuple: &Tuple) {
    let Some((_, flow)) = find_flow(tuple) else { return };
    if !flow_entry::state(flow).is_terminal() {
        return;
    }
    let FlowEntry { client_tuple, id, .. } = flow_entry::borrow(flow);
    // SAFETY: written by user space before the flow begins, and not changed.
    if unsafe { TUPLES.get(client_tuple) }.is_some_and(|other| other.flow_id == *id) {
        let _gone_already = TUPLES.remove(client_tuple);
    }
    let _gone_already = TUPLES.remove(tuple);
    emit_state(*id, FlowState::Pending);
}

/// Whether the kernel has the flow now.
#[inline(always)]
fn try_take_over(
    ctx: &TcContext,
    scratch: &mut Scratch,
    direction: Direction,
    flow: *mut FlowEntry,
) -> bool {
    let segment = &scratch.segment;
    if segment.has_flags(RST) || segment.has_flags(FIN) {
        fall_back(flow, FallbackReason::FlowEnded);
        return false;
    }
    direction == Direction::Down
        && segment.is_translatable != 0
        && segment.payload_len > 0
        && takeover::take_over(ctx, scratch, flow)
}

/// Sends a segment on to the other peer.
#[inline(always)]
fn forward_segment(
    ctx: &TcContext,
    scratch: &mut Scratch,
    direction: Direction,
    flow: *mut FlowEntry,
) -> i32 {
    let Scratch { segment, route_cache, .. } = scratch;
    if segment.is_translatable == 0 {
        count(PacketCounter::Malformed);
        return TC_ACT_SHOT;
    }
    let is_new = segment.tcp.flags & (SYN | ACK) == SYN;
    if is_new && flow_entry::state(flow) != FlowState::Offloaded {
        // The listener is to hear of it.
        let _gone_already = TUPLES.remove(&segment.tuple);
        return TCX_NEXT;
    }
    let (translation, receiver) = flow_entry::borrow(flow).translation(direction);
    if !translate::apply_ecn(segment, translation) {
        return TC_ACT_SHOT;
    }
    let next_hop = route_cache.get(ctx, segment.family, receiver).filter(|_| segment.ttl > 1);
    let Some(next_hop) = next_hop else {
        count(PacketCounter::Unroutable);
        return TC_ACT_SHOT;
    };
    if is_new {
        track::make_challenge_ack(segment, direction, flow);
    } else {
        track::track_segment(segment, direction, flow, next_hop.now_ns);
    }
    if !translate::translate(ctx, segment, translation, receiver, next_hop) {
        count(PacketCounter::Malformed);
        return TC_ACT_SHOT;
    }
    count(if is_new { PacketCounter::ChallengeAck } else { PacketCounter::Forwarded });
    route::redirect(next_hop)
}
