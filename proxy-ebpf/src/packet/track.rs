//! Tracking of the peers of a flow, from the packets that pass.
//!
//! Only a segment within its window changes the state. The programs forward a forged segment like any
//! other, and the receiver checks it.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{FlowEntry, FlowEvent, FlowState, PeerState, Translation};

use super::flow_entry;
use super::headers::{ACK, FIN, RST, SYN, Segment};
use super::maps::emit;

/// Bytes before the acknowledged ones that a segment may always start at, however small the window is: a
/// retransmission or a probe.
const MAX_OLD_BYTES: u32 = 1 << 16;

/// Whether `a` is after `b`, modulo 2^32.
#[inline(always)]
const fn is_after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// Whether a sequence number is in `from..=to`, modulo 2^32.
#[inline(always)]
pub(super) const fn is_within(number: u32, from: u32, to: u32) -> bool {
    number.wrapping_sub(from) <= to.wrapping_sub(from)
}

/// Updates the state of a flow by a segment.
///
/// Only packets of a peer write the state of that peer, except for a reset, which ends the flow.
#[inline(always)]
pub(super) fn track_segment(
    segment: &Segment,
    direction: Direction,
    flow: *mut FlowEntry,
    now: u64,
) {
    let entry = flow_entry::borrow_mut(flow);
    let (translation, own, other) = match direction {
        Direction::Up => (&entry.to_backend, &mut entry.client_state, &mut entry.backend_state),
        Direction::Down => (&entry.to_client, &mut entry.backend_state, &mut entry.client_state),
    };
    own.packets += 1;
    if segment.has_flags(RST) {
        // RFC 5961 §3.2: a reset is valid only at the sequence number expected next. So all bytes before it
        // have arrived.
        if segment.seq() == own.snd_nxt || segment.seq() == other.acked_seq {
            other.acked_bytes += u64::from(segment.seq().wrapping_sub(other.acked_seq));
            other.acked_seq = segment.seq();
            let end_state = match direction {
                Direction::Up => FlowState::ClientReset,
                Direction::Down => FlowState::BackendReset,
            };
            set_terminal(flow, end_state);
        }
        return;
    }
    if segment.tcp.flags & (SYN | ACK) != ACK
        || !record_segment(segment, translation, own, other, now)
    {
        return;
    }
    let has_ended = |one: &PeerState, other: &PeerState| {
        one.has_fin != 0 && !is_after(one.fin_seq, other.acked_seq)
    };
    if has_ended(own, other) && has_ended(other, own) {
        set_terminal(flow, FlowState::Closed);
    }
}

/// Turns a SYN for an offloaded flow into a challenge ACK to the other peer.
///
/// RFC 5961 §4 requires such a challenge from the receiver of the SYN. The answer of the other peer makes a
/// peer that has forgotten the old connection reset it.
#[inline(always)]
pub(super) fn make_challenge_ack(
    segment: &mut Segment,
    direction: Direction,
    flow: *mut FlowEntry,
) {
    let entry = flow_entry::borrow_mut(flow);
    let (translation, own, other) = match direction {
        Direction::Up => (&entry.to_backend, &mut entry.client_state, &entry.backend_state),
        Direction::Down => (&entry.to_client, &mut entry.backend_state, &entry.client_state),
    };
    own.packets += 1;
    // The byte before the window: the receiver acknowledges it and ignores it otherwise.
    let tcp = &mut segment.tcp;
    tcp.flags = ACK;
    tcp.seq = other.acked_seq.wrapping_sub(1).to_be();
    tcp.ack = own.acked_seq.wrapping_sub(translation.ack_delta).to_be();
}

/// Returns the first sequence number that the receiver does not consider too old. RFC 5961 §5 accepts as
/// many old bytes as the window has.
#[inline(always)]
fn window_start(receiver: &PeerState) -> u32 {
    let window = receiver.rcv_wnd_end.wrapping_sub(receiver.acked_seq);
    receiver.acked_seq.wrapping_sub(if window > MAX_OLD_BYTES { window } else { MAX_OLD_BYTES })
}

/// Returns the sequence number after the window of the receiver, and one more: for a FIN, or for a probe of
/// a closed window.
#[inline(always)]
fn window_end(receiver: &PeerState) -> u32 {
    receiver.rcv_wnd_end.wrapping_add(1)
}

/// Whether a segment is within the window that the peer's own state stores.
///
/// The state of the other peer is usually in a cache line of another CPU, so this does not read it. No peer
/// acknowledges more than its own window allows, so `ack` does not need it.
#[inline(always)]
fn is_in_window(segment: &Segment, ack: u32, own: &PeerState) -> bool {
    is_within(segment.seq(), own.valid_from, own.valid_to)
        && is_within(segment.seq_end(), own.valid_from, own.valid_to)
        && is_within(ack, window_start(own), window_end(own))
}

/// Reads the window from the other peer's state, and returns whether a segment is within it.
#[inline(always)]
fn is_in_refreshed_window(
    segment: &Segment,
    ack: u32,
    own: &mut PeerState,
    other: &PeerState,
) -> bool {
    if own.valid_from == own.valid_to {
        // See `PeerState::untracked`.
        own.acked_bytes += u64::from(ack.wrapping_sub(own.acked_seq));
        (own.snd_nxt, own.acked_seq, own.rcv_wnd_end) = (segment.seq_end(), ack, ack);
        (own.valid_from, own.valid_to) = (segment.seq(), segment.seq_end().wrapping_add(1));
        return true;
    }
    (own.valid_from, own.valid_to) = (window_start(other), window_end(other));
    is_in_window(segment, ack, own)
}

/// Updates the state of a peer by its segment, and returns whether the segment is within its window.
#[inline(always)]
fn record_segment(
    segment: &Segment,
    translation: &Translation,
    own: &mut PeerState,
    other: &PeerState,
    now: u64,
) -> bool {
    let ack = segment.ack().wrapping_add(translation.ack_delta);
    if !is_in_window(segment, ack, own) && !is_in_refreshed_window(segment, ack, own, other) {
        return false;
    }
    own.last_seen_ns = now;
    if is_after(segment.seq_end(), own.snd_nxt) {
        own.snd_nxt = segment.seq_end();
    }
    if segment.has_flags(FIN) {
        own.fin_seq = segment.seq_end();
        own.has_fin = 1;
    } else if segment.payload_len > 0 && is_after(segment.seq_end(), own.fin_seq) {
        // Data after the FIN: the FIN was forged.
        own.has_fin = 0;
    }
    if is_after(ack, own.acked_seq) {
        own.acked_bytes += u64::from(ack.wrapping_sub(own.acked_seq));
        own.acked_seq = ack;
    }
    let window = u32::from(u16::from_be(segment.tcp.window)) << (translation.wscale_from & 0xf);
    let edge = ack.wrapping_add(window);
    if is_after(edge, own.rcv_wnd_end) {
        own.rcv_wnd_end = edge;
    }
    true
}

/// Ends an offloaded flow, and sends an event with its byte counts.
#[inline(always)]
fn set_terminal(flow: *mut FlowEntry, state: FlowState) {
    if flow_entry::compare_exchange_state(flow, FlowState::Offloaded, state) {
        let (bytes_up, bytes_down) = flow_entry::borrow(flow).delivered_bytes();
        emit(FlowEvent { flow_id: flow_entry::id(flow), state, bytes_up, bytes_down });
    }
}
