//! Whose packets arrive by a tuple.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{FlowEntry, FlowState, Tuple, TupleEntry};

use super::flow_entry;
use super::headers::addr_words;
use super::maps::{FLOWS, TUPLES};

/// The flow whose packets arrive by a tuple. What is said of the tuple may be of another one already, once
/// it has gone (`htab_elem_free`, kernel/bpf/hashtab.c); the flow knows better, whose record stays while a
/// program has it (`Wish::LetGo`).
#[inline(always)]
pub(super) fn find_flow(tuple: &Tuple) -> Option<(Direction, *mut FlowEntry)> {
    lookup_entry(tuple).map(|(entry, flow)| (entry.direction, flow))
}

#[inline(always)]
fn lookup_entry(tuple: &Tuple) -> Option<(TupleEntry, *mut FlowEntry)> {
    // SAFETY: written by user space before the flow begins.
    let entry = *unsafe { TUPLES.get(tuple) }?;
    let flow = FLOWS.get_ptr_mut(entry.slot)?;
    matches(flow, entry.direction, tuple).then_some((entry, flow))
}

/// What was found by a tuple.
#[derive(Clone, Copy)]
#[repr(C)]
struct TupleCacheEntry {
    tag: u32,
    /// The slot of the flow, and the direction in the last bit.
    slot_and_direction: u32,
}

impl TupleCacheEntry {
    #[inline(always)]
    const fn new(tag: u32, slot: u32, direction: Direction) -> Self {
        Self { tag, slot_and_direction: slot << 1 | direction as u32 }
    }

    #[inline(always)]
    const fn unpack(self) -> (u32, Direction) {
        (
            self.slot_and_direction >> 1,
            if self.slot_and_direction & 1 == 0 { Direction::Up } else { Direction::Down },
        )
    }
}

/// These take half of the room that `Work` has.
const TUPLE_CACHE_LEN: usize = 2048;

/// What this CPU has found: a look-up by a slot takes less than one by a tuple. Who has the slot by now shows
/// there; a flow that has ended is looked up by its tuple, which may be another's.
#[repr(C, align(8))]
pub(super) struct TupleCache([TupleCacheEntry; TUPLE_CACHE_LEN]);

impl TupleCache {
    /// It is in one of two places, next to each other; in the first one if it came last.
    #[inline(always)]
    pub(super) fn find_flow(&mut self, tuple: &Tuple) -> Option<(Direction, *mut FlowEntry)> {
        let (tag, first) = (hash_tag(tuple), bucket_of(tuple));
        let second = first ^ 1;
        for bucket in [first, second] {
            let cached = self.0.get(bucket)?;
            let (slot, direction) = cached.unpack();
            if cached.tag == tag
                && let Some(flow) = FLOWS.get_ptr_mut(slot)
                && is_live(flow, direction, tuple)
            {
                return Some((direction, flow));
            }
        }
        let (TupleEntry { slot, direction, .. }, flow) = lookup_entry(tuple)?;
        let displaced = *self.0.get(first)?;
        *self.0.get_mut(second)? = displaced;
        *self.0.get_mut(first)? = TupleCacheEntry::new(tag, slot, direction);
        Some((direction, flow))
    }
}

/// Its first place. Ports are given out one after the other, or every other one of them: then flows that run at a
/// time do not meet, but for the two directions of some.
#[inline(always)]
fn bucket_of(tuple: &Tuple) -> usize {
    let [_, _, prefix, peer] = addr_words(&tuple.source);
    let hash = (prefix ^ peer.rotate_left(16)).wrapping_mul(0x9e37_79b1) >> 16;
    let ports = u32::from(tuple.source_port) + u32::from(tuple.destination_port);
    (hash + 2 * ports) as usize % TUPLE_CACHE_LEN
}

/// Tells most tuples apart.
#[inline(always)]
fn hash_tag(tuple: &Tuple) -> u32 {
    let [_, _, prefix, peer] = addr_words(&tuple.source);
    let ports = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
    prefix ^ peer.rotate_left(16) ^ ports
}

/// Whether that flow runs, and the tuple is its.
#[inline(always)]
fn is_live(flow: *mut FlowEntry, direction: Direction, tuple: &Tuple) -> bool {
    matches(flow, direction, tuple) && flow_entry::state(flow) == FlowState::Offloaded
}

#[inline(always)]
fn matches(flow: *mut FlowEntry, direction: Direction, tuple: &Tuple) -> bool {
    let FlowEntry { client_tuple, backend_tuple, .. } = flow_entry::borrow(flow);
    let expected = match direction {
        Direction::Up => client_tuple,
        Direction::Down => backend_tuple,
    };
    let address_bits_differing = |one: &[u8; 16], other: &[u8; 16]| {
        let ([a, b, c, d], [e, f, g, h]) = (addr_words(one), addr_words(other));
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
    };
    let ports = (expected.source_port ^ tuple.source_port)
        | (expected.destination_port ^ tuple.destination_port);
    let differing_bits = address_bits_differing(&expected.source, &tuple.source)
        | address_bits_differing(&expected.destination, &tuple.destination)
        | u32::from(ports);
    differing_bits == 0
}
