//! Conversion between records of [`snisplit_common::abi`] and the bytes of map entries.
//!
//! Keys and values of aya's maps must implement an `unsafe` trait, which byte arrays do.

use snisplit_common::abi::packet::{FlowEntry, Tuple, TupleEntry};
use snisplit_common::abi::sockmap::DirectionEntry;
use zerocopy::{Immutable, IntoBytes, TryFromBytes};

/// Bytes of a [`DirectionEntry`].
pub(super) type FlowBytes = [u8; size_of::<DirectionEntry>()];
/// Bytes of a [`FlowEntry`].
pub(super) type FlowEntryBytes = [u8; size_of::<FlowEntry>()];
/// Bytes of a [`Tuple`].
pub(super) type TupleBytes = [u8; size_of::<Tuple>()];
/// Bytes of a [`TupleEntry`].
pub(super) type TupleEntryBytes = [u8; size_of::<TupleEntry>()];

/// Encodes a record of `N` bytes.
pub(super) fn encode<T: IntoBytes + Immutable, const N: usize>(record: &T) -> [u8; N] {
    const { assert!(size_of::<T>() == N, "the record has another size") };
    let mut bytes = [0; N];
    bytes.copy_from_slice(record.as_bytes());
    bytes
}

/// Decodes a record. `None`: the length is wrong, or an enum has a value that this version does not
/// know.
pub(super) fn decode<T: TryFromBytes>(bytes: &[u8]) -> Option<T> {
    T::try_read_from_bytes(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use snisplit_common::abi::packet::{FallbackReason, FlowState, PeerState, Translation};
    use snisplit_common::abi::sockmap::DirectionState;

    use super::*;

    #[test]
    fn a_direction_is_decoded_as_encoded() {
        let flow = DirectionEntry {
            egress_cookie: u64::MAX,
            next_seq: 7,
            state: DirectionState::Overflowing,
            client_address: [8; 16],
            direction_changes: 18,
            ..DirectionEntry::default()
        };
        let bytes: FlowBytes = encode(&flow);
        assert_eq!(bytes[..8], [0xff; 8]);
        assert_eq!(decode(&bytes), Some(flow));
    }

    #[test]
    fn a_flow_is_decoded_as_encoded() {
        let tuple =
            Tuple { source: [1; 16], destination: [2; 16], source_port: 3, destination_port: 4 };
        let flow = FlowEntry {
            state: FlowState::BackendReset,
            client_tuple: tuple,
            to_client: Translation { tsecr_delta: 7, strip_ecn: 1, ..Translation::default() },
            backend_state: PeerState { packets: u64::MAX, has_fin: 1, ..PeerState::default() },
            fallback_reason: FallbackReason::NoRoute,
            ..FlowEntry::default()
        };
        let bytes: FlowEntryBytes = encode(&flow);
        assert_eq!(decode(&bytes), Some(flow));
    }

    #[test]
    fn unknown_states_and_other_lengths_are_not_decoded() {
        let mut bytes: FlowEntryBytes = encode(&FlowEntry::default());
        bytes[offset_of!(FlowEntry, state)] = FlowState::ALL.len() as u8;
        assert_eq!(decode::<FlowEntry>(&bytes), None);
        assert_eq!(decode::<FlowEntry>(&bytes[1..]), None);
    }
}
