//! The bytes of what the programs and we share. aya wants plain bytes or an `unsafe` promise; this
//! side has no use for the promise.

use std::mem::offset_of;

use snisplit_common::abi::packet::{
    FallbackReason, FlowEntry, FlowEvent, FlowState, PeerState, Translation, Tuple, TupleEntry,
};
use snisplit_common::abi::{
    Direction, DirectionEntry, DirectionState, SockmapEvent, SockmapEventKind,
};

/// A [`DirectionEntry`] as it stands in the map.
pub(super) type FlowBytes = [u8; size_of::<DirectionEntry>()];
/// A [`FlowEntry`] likewise.
pub(super) type FlowEntryBytes = [u8; size_of::<FlowEntry>()];
/// A [`Tuple`] likewise.
pub(super) type TupleBytes = [u8; size_of::<Tuple>()];
/// A [`TupleEntry`] likewise.
pub(super) type TupleEntryBytes = [u8; size_of::<TupleEntry>()];

/// What can be written to bytes and read back.
pub(super) trait MapValue: Sized {
    /// Writes itself to the front.
    fn write_to(&self, to: &mut [u8]);
    /// Reads itself off the front. A number that is none of ours is the one that is doubted.
    fn read_from(from: &[u8]) -> Self;
}

/// As it stands in a map; `N` is its size.
pub(super) fn encode<const N: usize>(value: &impl MapValue) -> [u8; N] {
    let mut bytes = [0; N];
    value.write_to(&mut bytes);
    bytes
}

macro_rules! impl_integers {
    ($($type:ident)*) => {
        $(impl MapValue for $type {
            fn write_to(&self, to: &mut [u8]) {
                to[..size_of::<Self>()].copy_from_slice(&self.to_ne_bytes());
            }

            fn read_from(from: &[u8]) -> Self {
                from.first_chunk().map_or(0, |bytes| Self::from_ne_bytes(*bytes))
            }
        })*
    };
}

impl<const N: usize> MapValue for [u64; N] {
    fn write_to(&self, to: &mut [u8]) {
        let places = to.as_chunks_mut::<{ size_of::<u64>() }>().0.iter_mut();
        self.iter().zip(places).for_each(|(number, place)| number.write_to(place));
    }

    fn read_from(from: &[u8]) -> Self {
        std::array::from_fn(|at| u64::read_from(&from[at * size_of::<u64>()..]))
    }
}

impl<const N: usize> MapValue for [u8; N] {
    fn write_to(&self, to: &mut [u8]) {
        to[..N].copy_from_slice(self);
    }

    fn read_from(from: &[u8]) -> Self {
        *from.first_chunk().unwrap_or(&[0; N])
    }
}

macro_rules! impl_struct {
    ($($type:ident { $($field:ident)* })*) => {
        $(impl MapValue for $type {
            fn write_to(&self, to: &mut [u8]) {
                $(self.$field.write_to(&mut to[offset_of!($type, $field)..]);)*
            }

            fn read_from(from: &[u8]) -> Self {
                Self { $($field: MapValue::read_from(&from[offset_of!($type, $field)..]),)* }
            }
        })*
    };
}

macro_rules! impl_enum {
    ($($type:ident($number:ident) of $all:expr, else $doubted:ident;)*) => {
        $(impl MapValue for $type {
            fn write_to(&self, to: &mut [u8]) {
                (*self as $number).write_to(to);
            }

            fn read_from(from: &[u8]) -> Self {
                let number = $number::read_from(from);
                $all.into_iter().find(|known| *known as $number == number).unwrap_or(Self::$doubted)
            }
        })*
    };
}

impl_integers! { u8 u16 u32 u64 }

pub(super) use impl_struct;

impl_enum! {
    DirectionState(u32) of [Self::Pending, Self::Redirecting, Self::Overflowing, Self::Detaching], else Poisoned;
    Direction(u32) of [Self::Up], else Down;
    SockmapEventKind(u32) of [Self::Detach], else Poison;
    FlowState(u64) of Self::ALL, else Fallback;
    FallbackReason(u32) of Self::ALL, else None;
}

impl_struct! {
    DirectionEntry {
        egress_cookie redirected_bytes passed_bytes started_at bulk_threshold window_bytes window_start_ns reverse_redirected initial_write_seq next_seq state direction
        client_address backend_address client_port backend_port avg_skb_len_x16 route_id direction_changes
    }
    SockmapEvent { cookie kind reserved }
    FlowEntry {
        state client_tuple to_backend backend_tuple to_client id started_at expected_acked route_id fallback_reason client_state padding backend_state
    }
    Tuple { source destination source_port destination_port }
    TupleEntry { flow_id direction slot }
    Translation { seq_delta ack_delta tsval_delta tsecr_delta min_tsecr wscale_from wscale_to strip_ecn reserved }
    PeerState { packets last_seen_ns acked_bytes snd_nxt fin_seq has_fin acked_seq rcv_wnd_end valid_from valid_to }
    FlowEvent { flow_id state bytes_up bytes_down }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let flow = DirectionEntry {
            egress_cookie: 1,
            redirected_bytes: 2,
            passed_bytes: u64::MAX,
            started_at: 4,
            bulk_threshold: 11,
            window_bytes: 12,
            window_start_ns: 13,
            reverse_redirected: 14,
            initial_write_seq: 5,
            next_seq: u32::MAX,
            state: DirectionState::Overflowing,
            direction: Direction::Down,
            client_address: [8; 16],
            backend_address: [9; 16],
            client_port: 443,
            backend_port: 8443,
            avg_skb_len_x16: 16,
            route_id: 17,
            direction_changes: 18,
        };
        assert_eq!(
            DirectionEntry::read_from(&encode::<{ size_of::<DirectionEntry>() }>(&flow)),
            flow
        );
        assert_eq!(
            DirectionEntry::read_from(&[0xff; size_of::<DirectionEntry>()]).state,
            DirectionState::Poisoned
        );
    }

    #[test]
    fn what_is_nested_is_decoded_too() {
        let tuple =
            Tuple { source: [1; 16], destination: [2; 16], source_port: 3, destination_port: 4 };
        let splice = FlowEntry {
            state: FlowState::BackendReset,
            client_tuple: tuple,
            to_client: Translation { tsecr_delta: 7, strip_ecn: 1, ..Translation::default() },
            backend_state: PeerState {
                packets: u64::MAX,
                acked_seq: 7,
                has_fin: 1,
                ..PeerState::default()
            },
            fallback_reason: FallbackReason::NoRoute,
            ..FlowEntry::default()
        };
        assert_eq!(FlowEntry::read_from(&encode::<{ size_of::<FlowEntry>() }>(&splice)), splice);
        assert_eq!(
            FlowEntry::read_from(&[0xff; size_of::<FlowEntry>()]).state,
            FlowState::Fallback
        );
    }
}
