//! Look-up of the flow that a packet belongs to.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{FlowEntry, FlowState, Tuple, TupleEntry};

use super::flow_entry;
use super::headers::addr_words;
use super::maps::{FLOWS, TUPLES};

/// Returns the flow whose packets arrive with a tuple, and their direction.
///
/// The hash map can reuse an element while a program reads it (`htab_elem_free`, kernel/bpf/hashtab.c). So
/// this compares the tuple with the one in the flow's entry, which the agent reuses only after an RCU grace
/// period.
#[inline(always)]
pub(super) fn find_flow(tuple: &Tuple) -> Option<(Direction, *mut FlowEntry)> {
    lookup_entry(tuple).map(|(entry, flow)| (entry.direction, flow))
}

#[inline(always)]
fn lookup_entry(tuple: &Tuple) -> Option<(TupleEntry, *mut FlowEntry)> {
    // SAFETY: the agent writes the element before the flow starts.
    let entry = *unsafe { TUPLES.get(tuple) }?;
    let flow = FLOWS.get_ptr_mut(entry.slot)?;
    matches(flow, entry.direction, tuple).then_some((entry, flow))
}

/// Result of a look-up by a tuple.
#[derive(Clone, Copy)]
#[repr(C)]
struct TupleCacheEntry {
    /// Hash of the tuple, see [`hash_tag`].
    tag: u32,
    /// Slot of the flow, shifted by one, and the direction in the lowest bit.
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

/// Number of entries. They take half of the size that [`Scratch`](super::scratch::Scratch) may have.
const TUPLE_CACHE_LEN: usize = 2048;

/// Cache of this CPU's look-ups, because a look-up by slot is faster than one by tuple.
///
/// A hit counts only if the entry in the slot has this tuple and is offloaded. All other packets need a
/// look-up by tuple, for example if a new flow has the tuple of one that has ended.
#[repr(C, align(8))]
pub(super) struct TupleCache([TupleCacheEntry; TUPLE_CACHE_LEN]);

impl TupleCache {
    /// Returns the flow of a tuple and the direction of its packets, from the cache if possible.
    ///
    /// A tuple has two adjacent buckets. A new entry moves the older one to the second bucket.
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

/// Returns the first bucket of a tuple.
///
/// Ports are assigned in sequence, or every second one. Then flows that run at the same time have
/// different buckets, except for the two directions of some flows.
#[inline(always)]
fn bucket_of(tuple: &Tuple) -> usize {
    let [_, _, prefix, peer] = addr_words(&tuple.source);
    let hash = (prefix ^ peer.rotate_left(16)).wrapping_mul(0x9e37_79b1) >> 16;
    let ports = u32::from(tuple.source_port) + u32::from(tuple.destination_port);
    (hash + 2 * ports) as usize % TUPLE_CACHE_LEN
}

/// Returns a hash of a tuple that distinguishes most tuples of a bucket.
#[inline(always)]
fn hash_tag(tuple: &Tuple) -> u32 {
    let [_, _, prefix, peer] = addr_words(&tuple.source);
    let ports = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
    prefix ^ peer.rotate_left(16) ^ ports
}

/// Whether a flow is offloaded and has this tuple in this direction.
#[inline(always)]
fn is_live(flow: *mut FlowEntry, direction: Direction, tuple: &Tuple) -> bool {
    matches(flow, direction, tuple) && flow_entry::state(flow) == FlowState::Offloaded
}

/// Whether a flow has this tuple in this direction.
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
