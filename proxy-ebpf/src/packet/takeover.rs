//! Takeover of a flow from its sockets, at the first bytes of the back end's answer.
//!
//! At that time the client has sent its ClientHello and has received nothing.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::packet::{FallbackReason, FlowEntry, FlowState};

use super::flow_entry;
use super::headers::{ACK, TCP_HLEN};
use super::maps::emit_state;
use super::options::Options;
use super::scratch::Scratch;
use super::sockets::{SockSnapshot, snapshot};

/// Assumed window of a receiver in bytes, until its first packet tells the real one.
const INITIAL_WINDOW: u32 = 1 << 20;
/// Nanoseconds of a tick of TCP timestamps (`TCP_TS_HZ`, include/net/tcp.h).
const TS_TICK_NS: u64 = 1_000_000;

/// Takes a pending flow over, and returns whether it is offloaded.
///
/// The egress program suppresses what the sockets send meanwhile. So a socket may still receive packets, but
/// its answers do not leave this host.
#[inline(never)]
pub(super) fn take_over(ctx: &TcContext, scratch: &mut Scratch, flow: *mut FlowEntry) -> bool {
    if !flow_entry::compare_exchange_state(flow, FlowState::Pending, FlowState::TakingOver) {
        return false;
    }
    // Other programs only read the entry while its state is `TakingOver`.
    let entry = flow_entry::borrow_mut(flow);
    let new_state = match prepare_takeover(ctx, scratch, entry) {
        Ok(()) => FlowState::Offloaded,
        Err(reason) => {
            entry.fallback_reason = reason;
            FlowState::Fallback
        }
    };
    flow_entry::compare_exchange_state(flow, FlowState::TakingOver, new_state);
    emit_state(flow_entry::id(flow), new_state);
    new_state == FlowState::Offloaded
}

/// Checks that the sockets hold no data, and computes the translations.
///
/// # Errors
/// Fails with the reason why the flow must stay with its sockets.
#[inline(always)]
fn prepare_takeover(
    ctx: &TcContext,
    scratch: &mut Scratch,
    entry: &mut FlowEntry,
) -> Result<(), FallbackReason> {
    let Scratch { segment, route_cache, sock_tuple, .. } = scratch;
    let client = snapshot(ctx, sock_tuple, segment.family, &entry.client_tuple)
        .ok_or(FallbackReason::NoSocket)?;
    let backend = snapshot(ctx, sock_tuple, segment.family, &entry.backend_tuple)
        .ok_or(FallbackReason::NoSocket)?;
    if !(client.is_established && backend.is_established && segment.has_flags(ACK)) {
        return Err(FallbackReason::NotEstablished);
    }
    if !(client.is_ecn_idle && backend.is_ecn_idle) {
        return Err(FallbackReason::EcnPending);
    }
    let acked_bytes =
        backend.write_seq.wrapping_sub(backend.snd_una).wrapping_add(backend.bytes_acked);
    let is_client_drained = client.copied_seq == client.rcv_nxt && client.is_ofo_queue_empty;
    if !is_client_drained
        || acked_bytes != entry.expected_acked
        || segment.ack() != backend.write_seq
    {
        return Err(FallbackReason::ClientBytesInFlight);
    }
    let is_backend_drained = backend.copied_seq == backend.rcv_nxt && backend.is_ofo_queue_empty;
    let is_next_expected = segment.seq() == backend.rcv_nxt;
    if !is_backend_drained || !is_next_expected || client.snd_una != client.write_seq {
        return Err(FallbackReason::BackendBytesInFlight);
    }
    for tuple in [&entry.client_tuple, &entry.backend_tuple] {
        let next_hop =
            route_cache.get(ctx, segment.family, tuple).ok_or(FallbackReason::NoRoute)?;
        // Packets of the peer must pass the programs.
        if next_hop.xmit == 0 {
            return Err(FallbackReason::NoRoute);
        }
    }
    let options = Options::read(ctx, segment.tcp_offset + TCP_HLEN, segment.options_len)
        .ok_or(FallbackReason::NoSocket)?;
    options.translate(&entry.to_client).ok_or(FallbackReason::NoSocket)?;
    set_sequence_deltas(entry, &client, &backend);
    set_timestamp_deltas(entry, &client, &backend, options.tsval().unwrap_or_default());
    Ok(())
}

/// Computes the deltas of sequence numbers, and the initial peer states.
#[inline(always)]
fn set_sequence_deltas(flow: &mut FlowEntry, client: &SockSnapshot, backend: &SockSnapshot) {
    let FlowEntry { to_backend, to_client, client_state, backend_state, .. } = flow;
    to_backend.seq_delta = backend.write_seq.wrapping_sub(client.rcv_nxt);
    to_backend.ack_delta = backend.rcv_nxt.wrapping_sub(client.write_seq);
    to_client.seq_delta = client.write_seq.wrapping_sub(backend.rcv_nxt);
    to_client.ack_delta = client.rcv_nxt.wrapping_sub(backend.write_seq);
    (client_state.snd_nxt, client_state.acked_seq) = (client.rcv_nxt, backend.rcv_nxt);
    (backend_state.snd_nxt, backend_state.acked_seq) = (backend.rcv_nxt, client.rcv_nxt);
    for peer in [client_state, backend_state] {
        peer.rcv_wnd_end = peer.acked_seq.wrapping_add(INITIAL_WINDOW);
        (peer.valid_from, peer.valid_to) =
            (peer.snd_nxt, peer.snd_nxt.wrapping_add(INITIAL_WINDOW));
    }
}

/// Computes the deltas of timestamps.
///
/// Each receiver must see timestamps that continue those of this host's socket and never go back (RFC 7323
/// §5). Each echo must be of a timestamp that the receiver has sent.
#[inline(always)]
fn set_timestamp_deltas(
    flow: &mut FlowEntry,
    client: &SockSnapshot,
    backend: &SockSnapshot,
    backend_tsval: u32,
) {
    // SAFETY: the helper has no arguments and no side effects.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let now_tsval = (now_ns / TS_TICK_NS) as u32;
    let FlowEntry { to_backend, to_client, client_state, backend_state, .. } = flow;
    // The time without packets starts at the takeover.
    (client_state.last_seen_ns, backend_state.last_seen_ns) = (now_ns, now_ns);
    to_backend.tsval_delta =
        now_tsval.wrapping_add(backend.ts_offset).wrapping_sub(client.ts_recent);
    to_client.tsval_delta = now_tsval.wrapping_add(client.ts_offset).wrapping_sub(backend_tsval);
    to_backend.tsecr_delta = to_client.tsval_delta.wrapping_neg();
    to_client.tsecr_delta = to_backend.tsval_delta.wrapping_neg();
    to_backend.min_tsecr = backend.ts_recent;
    to_client.min_tsecr = client.ts_recent;
}
