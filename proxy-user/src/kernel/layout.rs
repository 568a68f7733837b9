//! The bytes of what the programs and we share. aya wants plain bytes or an `unsafe` promise; this
//! side has no use for the promise.

use std::mem::offset_of;

use snisplit_common::abi::packet::{Leg, Said, Splice, SpliceState, Told, Tuple, Way, Why};
use snisplit_common::abi::{Direction, Event, EventKind, Flow, State};

/// A [`Flow`] as it stands in the map.
pub(super) type FlowBytes = [u8; size_of::<Flow>()];
/// A [`Splice`] likewise.
pub(super) type SpliceBytes = [u8; size_of::<Splice>()];
/// A [`Tuple`] likewise.
pub(super) type TupleBytes = [u8; size_of::<Tuple>()];
/// A [`Leg`] likewise.
pub(super) type LegBytes = [u8; size_of::<Leg>()];

/// What can be written to bytes and read back.
pub(super) trait Plain: Sized {
    /// Writes itself to the front.
    fn put(&self, to: &mut [u8]);
    /// Reads itself off the front. A number that is none of ours is the one that is doubted.
    fn get(from: &[u8]) -> Self;
}

/// As it stands in a map; `N` is its size.
pub(super) fn encode<const N: usize>(value: &impl Plain) -> [u8; N] {
    let mut bytes = [0; N];
    value.put(&mut bytes);
    bytes
}

macro_rules! numbers {
    ($($type:ident)*) => {
        $(impl Plain for $type {
            fn put(&self, to: &mut [u8]) {
                to[..size_of::<Self>()].copy_from_slice(&self.to_ne_bytes());
            }

            fn get(from: &[u8]) -> Self {
                from.first_chunk().map_or(0, |bytes| Self::from_ne_bytes(*bytes))
            }
        })*
    };
}

impl<const N: usize> Plain for [u64; N] {
    fn put(&self, to: &mut [u8]) {
        let places = to.chunks_exact_mut(size_of::<u64>());
        self.iter().zip(places).for_each(|(number, place)| number.put(place));
    }

    fn get(from: &[u8]) -> Self {
        std::array::from_fn(|at| u64::get(&from[at * size_of::<u64>()..]))
    }
}

impl<const N: usize> Plain for [u8; N] {
    fn put(&self, to: &mut [u8]) {
        to[..N].copy_from_slice(self);
    }

    fn get(from: &[u8]) -> Self {
        *from.first_chunk().unwrap_or(&[0; N])
    }
}

macro_rules! fields {
    ($($type:ident { $($field:ident)* })*) => {
        $(impl Plain for $type {
            fn put(&self, to: &mut [u8]) {
                $(self.$field.put(&mut to[offset_of!($type, $field)..]);)*
            }

            fn get(from: &[u8]) -> Self {
                Self { $($field: Plain::get(&from[offset_of!($type, $field)..]),)* }
            }
        })*
    };
}

macro_rules! words {
    ($($type:ident($number:ident) of $all:expr, else $doubted:ident;)*) => {
        $(impl Plain for $type {
            fn put(&self, to: &mut [u8]) {
                (*self as $number).put(to);
            }

            fn get(from: &[u8]) -> Self {
                let number = $number::get(from);
                $all.into_iter().find(|known| *known as $number == number).unwrap_or(Self::$doubted)
            }
        })*
    };
}

numbers! { u8 u16 u32 u64 }

pub(super) use fields;

words! {
    State(u32) of [Self::Armed, Self::Spliced, Self::Spilling, Self::Leaving], else Poisoned;
    Direction(u32) of [Self::Up], else Down;
    EventKind(u32) of [Self::Leave], else Poison;
    SpliceState(u64) of Self::ALL, else Fallback;
    Why(u32) of Self::ALL, else Unasked;
}

fields! {
    Flow {
        peer redirected passed opened bulk paced paced_from heard base next_seq state direction
        client backend client_port backend_port mean_len route turns
    }
    Event { cookie kind reserved }
    Splice {
        state client up backend down number opened due route why from_client apart from_backend
    }
    Tuple { source destination source_port destination_port }
    Leg { splice direction slot }
    Way { seq ack stamp echo echo_floor scale_in scale_out ends_ecn reserved }
    Said { packets last_seen bytes end fin has_fin acked edge oldest behind }
    Told { splice state up down }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let flow = Flow {
            peer: 1,
            redirected: 2,
            passed: u64::MAX,
            opened: 4,
            bulk: 11,
            paced: 12,
            paced_from: 13,
            heard: 14,
            base: 5,
            next_seq: u32::MAX,
            state: State::Spilling,
            direction: Direction::Down,
            client: [8; 16],
            backend: [9; 16],
            client_port: 443,
            backend_port: 8443,
            mean_len: 16,
            route: 17,
            turns: 18,
        };
        assert_eq!(Flow::get(&encode::<{ size_of::<Flow>() }>(&flow)), flow);
        assert_eq!(Flow::get(&[0xff; size_of::<Flow>()]).state, State::Poisoned);
    }

    #[test]
    fn what_is_nested_is_decoded_too() {
        let tuple =
            Tuple { source: [1; 16], destination: [2; 16], source_port: 3, destination_port: 4 };
        let splice = Splice {
            state: SpliceState::BackendReset,
            client: tuple,
            down: Way { echo: 7, ends_ecn: 1, ..Way::default() },
            from_backend: Said { packets: u64::MAX, acked: 7, has_fin: 1, ..Said::default() },
            why: Why::NoRoute,
            ..Splice::default()
        };
        assert_eq!(Splice::get(&encode::<{ size_of::<Splice>() }>(&splice)), splice);
        assert_eq!(Splice::get(&[0xff; size_of::<Splice>()]).state, SpliceState::Fallback);
    }
}
