//! Takes a flow over from its sockets, at the first bytes of the back end's answer: then the client
//! has said what it has to say for now, and has heard nothing.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::packet::{FallbackReason, FlowEntry, FlowState};

use crate::cas;
use crate::headers::{ACK, TCP};
use crate::legs::number;
use crate::maps::tell;
use crate::options::Options;
use crate::sockets::{Numbers, numbers};
use crate::work::Work;

/// What a receiver has room for as long as it has not said otherwise.
const FIRST_WINDOW: u32 = 1 << 20;
/// Nanoseconds in a timestamp's tick (`TCP_TS_HZ`, include/net/tcp.h).
const TICK: u64 = 1_000_000;

/// Whether the flow is the kernel's now. The gag is on while this looks: a socket may still receive
/// what was on its way to it, but what it says to that is not heard.
#[inline(never)]
pub(crate) fn switch(ctx: &TcContext, work: &mut Work, splice: *mut FlowEntry) -> bool {
    if !cas::swap(splice, FlowState::Pending, FlowState::TakingOver) {
        return false;
    }
    // SAFETY: the entry lives until this program ends, and whoever finds the flow switching looks only.
    let entry = unsafe { &mut *splice };
    let to = match take_over(ctx, work, entry) {
        Ok(()) => FlowState::Offloaded,
        Err(why) => {
            entry.fallback_reason = why;
            FlowState::Fallback
        }
    };
    cas::swap(splice, FlowState::TakingOver, to);
    tell(number(splice), to);
    to == FlowState::Offloaded
}

#[inline(always)]
fn take_over(
    ctx: &TcContext,
    work: &mut Work,
    splice: &mut FlowEntry,
) -> Result<(), FallbackReason> {
    let Work { segment, ways, key, .. } = work;
    let client =
        numbers(ctx, key, segment.family, &splice.client_tuple).ok_or(FallbackReason::NoSocket)?;
    let backend =
        numbers(ctx, key, segment.family, &splice.backend_tuple).ok_or(FallbackReason::NoSocket)?;
    if !(client.is_established && backend.is_established && segment.has(ACK)) {
        return Err(FallbackReason::NotEstablished);
    }
    if !(client.is_unmarked && backend.is_unmarked) {
        return Err(FallbackReason::EcnPending);
    }
    let written = backend.write_seq.wrapping_sub(backend.snd_una).wrapping_add(backend.bytes_acked);
    let is_client_quiet = client.copied_seq == client.rcv_nxt && client.is_in_order;
    if !is_client_quiet || written != splice.expected_acked || segment.ack() != backend.write_seq {
        return Err(FallbackReason::ClientBytesInFlight);
    }
    let is_backend_quiet = backend.copied_seq == backend.rcv_nxt && backend.is_in_order;
    let is_first = segment.seq() == backend.rcv_nxt;
    if !is_backend_quiet || !is_first || client.snd_una != client.write_seq {
        return Err(FallbackReason::BackendBytesInFlight);
    }
    for tuple in [&splice.client_tuple, &splice.backend_tuple] {
        let out = ways.to(ctx, segment.family, tuple).ok_or(FallbackReason::NoRoute)?;
        // What comes back by that way must pass here.
        if out.way_out == 0 {
            return Err(FallbackReason::NoRoute);
        }
    }
    let options =
        Options::read(ctx, segment.at + TCP, segment.options).ok_or(FallbackReason::NoSocket)?;
    options.translate(&splice.to_client).ok_or(FallbackReason::NoSocket)?;
    set_numbers(splice, &client, &backend);
    set_stamps(splice, &client, &backend, options.stamp().unwrap_or_default());
    Ok(())
}

#[inline(always)]
fn set_numbers(splice: &mut FlowEntry, client: &Numbers, backend: &Numbers) {
    let FlowEntry {
        to_backend: up,
        to_client: down,
        client_state: from_client,
        backend_state: from_backend,
        ..
    } = splice;
    up.seq_delta = backend.write_seq.wrapping_sub(client.rcv_nxt);
    up.ack_delta = backend.rcv_nxt.wrapping_sub(client.write_seq);
    down.seq_delta = client.write_seq.wrapping_sub(backend.rcv_nxt);
    down.ack_delta = client.rcv_nxt.wrapping_sub(backend.write_seq);
    (from_client.snd_nxt, from_client.acked_seq) = (client.rcv_nxt, backend.rcv_nxt);
    (from_backend.snd_nxt, from_backend.acked_seq) = (backend.rcv_nxt, client.rcv_nxt);
    for said in [from_client, from_backend] {
        said.rcv_wnd_end = said.acked_seq.wrapping_add(FIRST_WINDOW);
        (said.valid_from, said.valid_to) = (said.snd_nxt, said.snd_nxt.wrapping_add(FIRST_WINDOW));
    }
}

/// Each receiver must see timestamps go on where our kernel's were: never back (RFC 7323 §5), and an
/// echo of something that it sent.
#[inline(always)]
fn set_stamps(splice: &mut FlowEntry, client: &Numbers, backend: &Numbers, stamp: u32) {
    // SAFETY: takes nothing and touches nothing.
    let nanoseconds = unsafe { bpf_ktime_get_ns() };
    let now = (nanoseconds / TICK) as u32;
    let FlowEntry {
        to_backend: up,
        to_client: down,
        client_state: from_client,
        backend_state: from_backend,
        ..
    } = splice;
    // Whoever says nothing from now on is silent since now.
    (from_client.last_seen_ns, from_backend.last_seen_ns) = (nanoseconds, nanoseconds);
    up.tsval_delta = now.wrapping_add(backend.ts_offset).wrapping_sub(client.ts_recent);
    down.tsval_delta = now.wrapping_add(client.ts_offset).wrapping_sub(stamp);
    up.tsecr_delta = down.tsval_delta.wrapping_neg();
    down.tsecr_delta = up.tsval_delta.wrapping_neg();
    up.min_tsecr = backend.ts_recent;
    down.min_tsecr = client.ts_recent;
}
