//! Flow entries of packet ABI versions 2 and 3, from which `snisplit flows migrate` converts.
//!
//! These versions kept flows in a hash map by [`FlowEntry::id`]. Version 4 has the present layout.

use core::mem::offset_of;

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::{FallbackReason, FlowEntry, FlowState, PeerState, Translation, Tuple};

/// Flow entry of versions 2 and 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct FlowEntryV3 {
    /// As [`FlowEntry::state`].
    pub state: FlowState,
    /// As [`FlowEntry::started_at`].
    pub started_at: u64,
    /// As [`FlowEntry::client_tuple`].
    pub client_tuple: Tuple,
    /// As [`FlowEntry::backend_tuple`].
    pub backend_tuple: Tuple,
    /// Packets from the client to the back end.
    pub to_backend: DirectionV3,
    /// Packets from the back end to the client.
    pub to_client: DirectionV3,
    /// As [`FlowEntry::expected_acked`].
    pub expected_acked: u32,
    /// As [`FlowEntry::route_id`].
    pub route_id: u32,
    /// As [`FlowEntry::fallback_reason`].
    pub fallback_reason: FallbackReason,
    /// Zero.
    pub reserved: u32,
}

/// One direction of a flow. Sequence numbers are those of its sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct DirectionV3 {
    /// [`PeerState::packets`] of the sender.
    pub packets: u64,
    /// [`PeerState::acked_bytes`] of the receiver.
    pub acked_bytes: u64,
    /// [`PeerState::last_seen_ns`] of the sender.
    pub last_seen_ns: u64,
    /// As [`Translation::seq_delta`].
    pub seq_delta: u32,
    /// As [`Translation::ack_delta`].
    pub ack_delta: u32,
    /// As [`Translation::tsval_delta`].
    pub tsval_delta: u32,
    /// As [`Translation::tsecr_delta`].
    pub tsecr_delta: u32,
    /// As [`Translation::min_tsecr`].
    pub min_tsecr: u32,
    /// As [`Translation::wscale_from`].
    pub wscale_from: u32,
    /// As [`Translation::wscale_to`].
    pub wscale_to: u32,
    /// First sequence number. The present version does not store it.
    pub start_seq: u32,
    /// [`PeerState::snd_nxt`] of the sender.
    pub snd_nxt: u32,
    /// [`PeerState::acked_seq`] of the receiver.
    pub acked_seq: u32,
    /// [`PeerState::rcv_wnd_end`] of the receiver.
    pub rcv_wnd_end: u32,
    /// [`PeerState::fin_seq`] of the sender.
    pub fin_seq: u32,
    /// [`PeerState::has_fin`] of the sender.
    pub has_fin: u32,
    /// As [`Translation::strip_ecn`].
    pub strip_ecn: u32,
}

impl FlowEntryV3 {
    /// Converts to the present layout. The peers are untracked until the programs of the next agent track
    /// them.
    pub fn to_present(&self, flow_id: u64) -> FlowEntry {
        FlowEntry {
            state: self.state,
            client_tuple: self.client_tuple,
            to_backend: self.to_backend.translation(),
            backend_tuple: self.backend_tuple,
            to_client: self.to_client.translation(),
            id: flow_id,
            started_at: self.started_at,
            expected_acked: self.expected_acked,
            route_id: self.route_id,
            fallback_reason: self.fallback_reason,
            client_state: self.to_backend.sender_state(&self.to_client).untracked(),
            backend_state: self.to_client.sender_state(&self.to_backend).untracked(),
            ..FlowEntry::default()
        }
    }
}

impl DirectionV3 {
    const fn translation(&self) -> Translation {
        Translation {
            seq_delta: self.seq_delta,
            ack_delta: self.ack_delta,
            tsval_delta: self.tsval_delta,
            tsecr_delta: self.tsecr_delta,
            min_tsecr: self.min_tsecr,
            wscale_from: self.wscale_from as u8,
            wscale_to: self.wscale_to as u8,
            strip_ecn: self.strip_ecn as u8,
            reserved: 0,
        }
    }

    /// Returns the state of this direction's sender. `opposite` is the direction that it receives.
    fn sender_state(&self, opposite: &Self) -> PeerState {
        PeerState {
            packets: self.packets,
            last_seen_ns: self.last_seen_ns,
            acked_bytes: opposite.acked_bytes,
            snd_nxt: self.snd_nxt,
            fin_seq: self.fin_seq,
            has_fin: self.has_fin,
            acked_seq: opposite.acked_seq,
            rcv_wnd_end: opposite.rcv_wnd_end,
            ..PeerState::default()
        }
    }
}

const _: () = assert!(size_of::<FlowEntryV3>() == 264 && size_of::<DirectionV3>() == 80);
const _: () = assert!(offset_of!(FlowEntryV3, to_backend) == 88);
const _: () = assert!(offset_of!(FlowEntryV3, expected_acked) == 248);
const _: () = assert!(offset_of!(DirectionV3, start_seq) == 52);
const _: () = assert!(offset_of!(DirectionV3, strip_ecn) == 76);

#[cfg(test)]
mod tests {
    use super::*;

    const fn direction(first: u32) -> DirectionV3 {
        DirectionV3 {
            packets: first as u64,
            acked_bytes: first as u64 + 1,
            last_seen_ns: first as u64 + 2,
            seq_delta: first + 3,
            ack_delta: first + 4,
            tsval_delta: first + 5,
            tsecr_delta: first + 6,
            min_tsecr: first + 7,
            wscale_from: first + 8,
            wscale_to: first + 9,
            start_seq: first + 10,
            snd_nxt: first + 11,
            acked_seq: first + 12,
            rcv_wnd_end: first + 13,
            fin_seq: first + 14,
            has_fin: 1,
            strip_ecn: 1,
        }
    }

    const fn translation(first: u32) -> Translation {
        Translation {
            seq_delta: first + 3,
            ack_delta: first + 4,
            tsval_delta: first + 5,
            tsecr_delta: first + 6,
            min_tsecr: first + 7,
            wscale_from: first as u8 + 8,
            wscale_to: first as u8 + 9,
            strip_ecn: 1,
            reserved: 0,
        }
    }

    #[test]
    fn every_field_is_converted() {
        let tuple = |port| Tuple { source_port: port, ..Tuple::default() };
        let old = FlowEntryV3 {
            state: FlowState::Offloaded,
            started_at: 1,
            client_tuple: tuple(2),
            backend_tuple: tuple(3),
            to_backend: direction(100),
            to_client: direction(200),
            expected_acked: 4,
            route_id: 5,
            fallback_reason: FallbackReason::NoRoute,
            reserved: 0,
        };
        // What a peer sends is in its own direction, what it acknowledges in the other one.
        let state = |sent: u32, received: u32| PeerState {
            packets: sent.into(),
            last_seen_ns: u64::from(sent) + 2,
            acked_bytes: u64::from(received) + 1,
            snd_nxt: sent + 11,
            fin_seq: sent + 14,
            has_fin: 1,
            acked_seq: received + 12,
            rcv_wnd_end: received + 13,
            ..PeerState::default()
        };
        let expected = FlowEntry {
            state: FlowState::Offloaded,
            client_tuple: tuple(2),
            to_backend: translation(100),
            backend_tuple: tuple(3),
            to_client: translation(200),
            id: 6,
            started_at: 1,
            expected_acked: 4,
            route_id: 5,
            fallback_reason: FallbackReason::NoRoute,
            client_state: state(100, 200).untracked(),
            backend_state: state(200, 100).untracked(),
            ..FlowEntry::default()
        };
        assert_eq!(old.to_present(6), expected);
    }
}
