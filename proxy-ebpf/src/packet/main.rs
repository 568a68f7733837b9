//! The kernel programs of the packet engine.
//!
//! `sni_in` sees what arrives. A flow that is armed still belongs to two sockets; when its back end
//! answers, they are looked at, and if they hold nothing any more, packets of the flow are translated
//! from one leg to the other from then on. `sni_out` sees what this host sends, and gags those two
//! sockets. `sni_early` does what `sni_in` does with the packets of a flow that is taken over, in the driver
//! (XDP). `sni_settle` lets user space decide that a flow stays with its sockets.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{
    ControlCommand, FallbackReason, FlowEntry, FlowState, PacketCounter, Tuple,
};

mod cas;
mod early;
mod forward;
mod frame;
mod headers;
mod icmp;
mod legs;
mod maps;
mod offer;
mod options;
mod sockets;
mod stamps;
mod sum;
mod switch;
mod track;
mod translate;
mod work;

use headers::{ACK, FIN, RST, SYN};
use legs::{find, number};
use maps::{SPLICES, TUPLES, count, tell};
use work::Work;

/// `TCX_NEXT`, and TC_ACT_UNSPEC of older hooks: it is not ours.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const DROP: i32 = 2;

#[classifier]
fn sni_in(ctx: TcContext) -> i32 {
    let Some(work) = Work::get() else { return NEXT };
    if work.segment.read(&ctx).is_none() {
        return icmp::forward(&ctx, work);
    }
    let Some((direction, splice)) = work.legs.find(&work.segment.tuple) else { return NEXT };
    let is_ours = match cas::state(splice) {
        FlowState::Pending => armed(&ctx, work, direction, splice),
        FlowState::TakingOver => {
            count(PacketCounter::DroppedInTakeover);
            return DROP;
        }
        FlowState::Fallback => false,
        FlowState::Offloaded
        | FlowState::Closed
        | FlowState::ClientReset
        | FlowState::BackendReset => true,
    };
    if is_ours { forward(&ctx, work, direction, splice) } else { NEXT }
}

#[classifier]
fn sni_out(ctx: TcContext) -> i32 {
    // SAFETY: the context that the kernel gave us.
    if unsafe { (*ctx.skb.skb).ingress_ifindex } != 0 {
        // Sent on, perhaps by us.
        return NEXT;
    }
    let Some(Work { segment, .. }) = Work::get() else { return NEXT };
    if segment.read(&ctx).is_none() {
        return NEXT;
    }
    segment.reverse();
    if segment.tcp.flags & (SYN | ACK) == SYN {
        begin_anew(&segment.tuple);
        offer::restrain(&ctx, segment);
        return NEXT;
    }
    let Some((_, splice)) = find(&segment.tuple) else { return NEXT };
    if cas::state(splice) == FlowState::Pending {
        if segment.has(FIN) || segment.has(RST) {
            settle(splice, FallbackReason::FlowEnded);
        }
        // A barrier: what a socket has received is seen by the CPU that switches, or the switch is seen
        // here.
        if cas::swap(splice, FlowState::Pending, FlowState::Pending) {
            return NEXT;
        }
    }
    match cas::state(splice) {
        FlowState::Fallback => NEXT,
        _ => {
            count(PacketCounter::Suppressed);
            DROP
        }
    }
}

/// Its packet is the slot of a flow and what is wanted of it, behind room for an Ethernet header. The
/// answer is the state that the flow is in.
#[classifier]
fn sni_settle(ctx: TcContext) -> i32 {
    let at = headers::ETHERNET as usize;
    let Ok(slot) = ctx.load::<u64>(at) else { return NEXT };
    let Ok(wish) = ctx.load::<u64>(at + size_of::<u64>()) else { return NEXT };
    let Some(splice) = SPLICES.get_ptr_mut(slot as u32) else { return NEXT };
    if wish == ControlCommand::Release as u64 {
        cas::swap(splice, FlowState::Pending, FlowState::Fallback);
        cas::swap(splice, FlowState::Offloaded, FlowState::Fallback);
    } else {
        settle(splice, FallbackReason::Requested);
    }
    cas::state(splice) as i32
}

/// Leaves a flow to its sockets, if nobody has decided yet.
fn settle(splice: *mut FlowEntry, why: FallbackReason) {
    if cas::swap(splice, FlowState::Pending, FlowState::Fallback) {
        // SAFETY: the entry lives until this program ends, and who has decided says why.
        unsafe { (*splice).fallback_reason = why };
        tell(number(splice), FlowState::Fallback);
    }
}

/// What is left of a flow goes when another connection leaves by its port.
#[inline(never)]
fn begin_anew(tuple: &Tuple) {
    let Some((_, splice)) = find(tuple) else { return };
    if !cas::state(splice).is_terminal() {
        return;
    }
    // SAFETY: the entry lives until this program ends, and its tuples do not change.
    let FlowEntry { client_tuple: client, id: number, .. } = unsafe { &*splice };
    // SAFETY: written by user space before the flow begins, and not changed.
    if unsafe { TUPLES.get(client) }.is_some_and(|other| other.flow_id == *number) {
        let _gone_already = TUPLES.remove(client);
    }
    let _gone_already = TUPLES.remove(tuple);
    tell(*number, FlowState::Pending);
}

/// Whether the kernel has the flow now.
#[inline(always)]
fn armed(ctx: &TcContext, work: &mut Work, direction: Direction, splice: *mut FlowEntry) -> bool {
    let segment = &work.segment;
    if segment.has(RST) || segment.has(FIN) {
        settle(splice, FallbackReason::FlowEnded);
        return false;
    }
    direction == Direction::Down
        && segment.is_whole != 0
        && segment.payload > 0
        && switch::switch(ctx, work, splice)
}

/// Sends a segment on to the other peer.
#[inline(always)]
fn forward(ctx: &TcContext, work: &mut Work, direction: Direction, splice: *mut FlowEntry) -> i32 {
    let Work { segment, ways, .. } = work;
    if segment.is_whole == 0 {
        count(PacketCounter::Malformed);
        return DROP;
    }
    let is_new = segment.tcp.flags & (SYN | ACK) == SYN;
    if is_new && cas::state(splice) != FlowState::Offloaded {
        // The listener is to hear of it.
        let _gone_already = TUPLES.remove(&segment.tuple);
        return NEXT;
    }
    // SAFETY: the entry lives until this program ends, and what is translated by does not change.
    let (way, to) = unsafe { &*splice }.translation(direction);
    if !translate::unmark(segment, way) {
        return DROP;
    }
    let route = ways.to(ctx, segment.family, to).filter(|_| segment.ttl > 1);
    let Some(route) = route else {
        count(PacketCounter::Unroutable);
        return DROP;
    };
    if is_new {
        track::challenge(segment, direction, splice);
    } else {
        track::track(segment, direction, splice, route.now);
    }
    if !translate::translate(ctx, segment, way, to, route) {
        count(PacketCounter::Malformed);
        return DROP;
    }
    count(if is_new { PacketCounter::ChallengeAck } else { PacketCounter::Forwarded });
    forward::send(route)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
