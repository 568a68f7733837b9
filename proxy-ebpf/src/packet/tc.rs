//! TC programs.

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

/// Entry point of `sni_in`.
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

/// Entry point of `sni_out`.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } != 0 {
        // This host forwards it and has not sent it.
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
        // A full barrier: either the CPU that takes over sees what the socket has received, or this
        // program sees the takeover.
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

/// Entry point of `sni_ctl`, which executes a [`ControlCommand`] and returns the state of the flow.
///
/// The packet has the slot of the flow and the command as two 64-bit numbers, after an Ethernet header.
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

/// Leaves a pending flow to its sockets.
fn fall_back(flow: *mut FlowEntry, reason: FallbackReason) {
    if flow_entry::compare_exchange_state(flow, FlowState::Pending, FlowState::Fallback) {
        flow_entry::borrow_mut(flow).fallback_reason = reason;
        emit_state(flow_entry::id(flow), FlowState::Fallback);
    }
}

/// Removes the tuples of a flow that has ended, when a new connection uses its port.
#[inline(never)]
fn evict_closed(tuple: &Tuple) {
    let Some((_, flow)) = find_flow(tuple) else { return };
    if !flow_entry::state(flow).is_terminal() {
        return;
    }
    let FlowEntry { client_tuple, id, .. } = flow_entry::borrow(flow);
    // SAFETY: the agent writes the element before the flow starts, and does not change it.
    if unsafe { TUPLES.get(client_tuple) }.is_some_and(|other| other.flow_id == *id) {
        let _already_removed = TUPLES.remove(client_tuple);
    }
    let _already_removed = TUPLES.remove(tuple);
    emit_state(*id, FlowState::Pending);
}

/// Takes a pending flow over if this segment allows it, and returns whether the flow is offloaded.
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

/// Translates a segment and forwards it to the other peer.
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
        // A new connection from the address of a flow that has ended: it belongs to the listener.
        let _already_removed = TUPLES.remove(&segment.tuple);
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
