//! The bytes of what the program and we share. aya wants plain bytes or an `unsafe` promise; this
//! side has no use for the promise.

use std::mem::offset_of;

use snisplit_common::abi::{Direction, Event, EventKind, Flow, State};

/// A [`Flow`] as it stands in the map.
pub(super) type Bytes = [u8; size_of::<Flow>()];

pub(super) fn encode(flow: &Flow) -> Bytes {
    let mut bytes = [0; size_of::<Flow>()];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Flow, peer), &flow.peer.to_ne_bytes());
    put(offset_of!(Flow, redirected), &flow.redirected.to_ne_bytes());
    put(offset_of!(Flow, passed), &flow.passed.to_ne_bytes());
    put(offset_of!(Flow, opened), &flow.opened.to_ne_bytes());
    put(offset_of!(Flow, bulk), &flow.bulk.to_ne_bytes());
    put(offset_of!(Flow, paced), &flow.paced.to_ne_bytes());
    put(offset_of!(Flow, paced_from), &flow.paced_from.to_ne_bytes());
    put(offset_of!(Flow, base), &flow.base.to_ne_bytes());
    put(offset_of!(Flow, next_seq), &flow.next_seq.to_ne_bytes());
    put(offset_of!(Flow, state), &(flow.state as u32).to_ne_bytes());
    put(offset_of!(Flow, direction), &(flow.direction as u32).to_ne_bytes());
    put(offset_of!(Flow, client), &flow.client);
    put(offset_of!(Flow, backend), &flow.backend);
    put(offset_of!(Flow, client_port), &flow.client_port.to_ne_bytes());
    put(offset_of!(Flow, backend_port), &flow.backend_port.to_ne_bytes());
    put(offset_of!(Flow, mean_len), &flow.mean_len.to_ne_bytes());
    put(offset_of!(Flow, route), &flow.route.to_ne_bytes());
    bytes
}

pub(super) fn decode(bytes: &Bytes) -> Flow {
    Flow {
        peer: u64::from_ne_bytes(at(bytes, offset_of!(Flow, peer))),
        redirected: u64::from_ne_bytes(at(bytes, offset_of!(Flow, redirected))),
        passed: u64::from_ne_bytes(at(bytes, offset_of!(Flow, passed))),
        opened: u64::from_ne_bytes(at(bytes, offset_of!(Flow, opened))),
        bulk: u64::from_ne_bytes(at(bytes, offset_of!(Flow, bulk))),
        paced: u64::from_ne_bytes(at(bytes, offset_of!(Flow, paced))),
        paced_from: u64::from_ne_bytes(at(bytes, offset_of!(Flow, paced_from))),
        base: u32::from_ne_bytes(at(bytes, offset_of!(Flow, base))),
        next_seq: u32::from_ne_bytes(at(bytes, offset_of!(Flow, next_seq))),
        state: state(u32::from_ne_bytes(at(bytes, offset_of!(Flow, state)))),
        direction: match u32::from_ne_bytes(at(bytes, offset_of!(Flow, direction))) {
            0 => Direction::Up,
            _ => Direction::Down,
        },
        client: at(bytes, offset_of!(Flow, client)),
        backend: at(bytes, offset_of!(Flow, backend)),
        client_port: u16::from_ne_bytes(at(bytes, offset_of!(Flow, client_port))),
        backend_port: u16::from_ne_bytes(at(bytes, offset_of!(Flow, backend_port))),
        mean_len: u32::from_ne_bytes(at(bytes, offset_of!(Flow, mean_len))),
        route: u32::from_ne_bytes(at(bytes, offset_of!(Flow, route))),
        reserved: 0,
    }
}

/// A number that is none of ours is a doubt.
fn state(number: u32) -> State {
    let all = [State::Armed, State::Spliced, State::Spilling, State::Leaving];
    all.into_iter().find(|known| *known as u32 == number).unwrap_or(State::Poisoned)
}

/// Whose event, and what.
pub(super) fn event(bytes: &[u8]) -> Option<(u64, EventKind)> {
    let cookie = bytes.get(offset_of!(Event, cookie)..)?.first_chunk()?;
    let kind = bytes.get(offset_of!(Event, kind)..)?.first_chunk()?;
    let (cookie, kind) = (u64::from_ne_bytes(*cookie), u32::from_ne_bytes(*kind));
    let all = [EventKind::Leave, EventKind::Poison];
    all.into_iter().find(|known| *known as u32 == kind).map(|kind| (cookie, kind))
}

fn at<const N: usize>(bytes: &Bytes, offset: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[offset..offset + N]);
    value
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
            reserved: 0,
        };
        assert_eq!(decode(&encode(&flow)), flow);
        assert_eq!(decode(&[0xff; size_of::<Flow>()]).state, State::Poisoned);
    }
}
