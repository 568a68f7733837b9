//! Whose packets arrive by a tuple.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{FlowEntry, FlowState, Tuple, TupleEntry};

use crate::cas;
use crate::headers::words;
use crate::maps::{SPLICES, TUPLES};

/// The flow whose packets arrive by a tuple. What is said of the tuple may be of another one already, once
/// it has gone (`htab_elem_free`, kernel/bpf/hashtab.c); the flow knows better, whose record stays while a
/// program has it (`Wish::LetGo`).
#[inline(always)]
pub(crate) fn find(tuple: &Tuple) -> Option<(Direction, *mut FlowEntry)> {
    look_up(tuple).map(|(leg, splice)| (leg.direction, splice))
}

#[inline(always)]
fn look_up(tuple: &Tuple) -> Option<(TupleEntry, *mut FlowEntry)> {
    // SAFETY: written by user space before the flow begins.
    let leg = *unsafe { TUPLES.get(tuple) }?;
    let splice = SPLICES.get_ptr_mut(leg.slot)?;
    is_of(splice, leg.direction, tuple).then_some((leg, splice))
}

/// Which flow it is.
#[inline(always)]
pub(crate) fn number(splice: *const FlowEntry) -> u64 {
    // SAFETY: the entry lives until this program ends, and its number does not change.
    unsafe { (*splice).id }
}

/// What was found by a tuple.
#[derive(Clone, Copy)]
#[repr(C)]
struct Known {
    tag: u32,
    /// The slot of the flow, and the direction in the last bit.
    leg: u32,
}

impl Known {
    #[inline(always)]
    const fn new(tag: u32, slot: u32, direction: Direction) -> Self {
        Self { tag, leg: slot << 1 | direction as u32 }
    }

    #[inline(always)]
    const fn leg(self) -> (u32, Direction) {
        (self.leg >> 1, if self.leg & 1 == 0 { Direction::Up } else { Direction::Down })
    }
}

/// These take half of the room that `Work` has.
const KNOWN_MAX: usize = 2048;

/// What this CPU has found: a look-up by a slot takes less than one by a tuple. Who has the slot by now shows
/// there; a flow that has ended is looked up by its tuple, which may be another's.
#[repr(C, align(8))]
pub(crate) struct Legs([Known; KNOWN_MAX]);

impl Legs {
    /// It is in one of two places, next to each other; in the first one if it came last.
    #[inline(always)]
    pub(crate) fn find(&mut self, tuple: &Tuple) -> Option<(Direction, *mut FlowEntry)> {
        let (tag, first) = (tag(tuple), place(tuple));
        let second = first ^ 1;
        for place in [first, second] {
            let known = self.0.get(place)?;
            let (slot, direction) = known.leg();
            if known.tag == tag
                && let Some(splice) = SPLICES.get_ptr_mut(slot)
                && runs(splice, direction, tuple)
            {
                return Some((direction, splice));
            }
        }
        let (TupleEntry { slot, direction, .. }, splice) = look_up(tuple)?;
        let displaced = *self.0.get(first)?;
        *self.0.get_mut(second)? = displaced;
        *self.0.get_mut(first)? = Known::new(tag, slot, direction);
        Some((direction, splice))
    }
}

/// Its first place. Ports are given out one after the other, or every other one of them: then flows that run at a
/// time do not meet, but for the two directions of some.
#[inline(always)]
fn place(tuple: &Tuple) -> usize {
    let [_, _, prefix, peer] = words(&tuple.source);
    let hash = (prefix ^ peer.rotate_left(16)).wrapping_mul(0x9e37_79b1) >> 16;
    let ports = u32::from(tuple.source_port) + u32::from(tuple.destination_port);
    (hash + 2 * ports) as usize % KNOWN_MAX
}

/// Tells most tuples apart.
#[inline(always)]
fn tag(tuple: &Tuple) -> u32 {
    let [_, _, prefix, peer] = words(&tuple.source);
    let ports = u32::from(tuple.source_port) << 16 | u32::from(tuple.destination_port);
    prefix ^ peer.rotate_left(16) ^ ports
}

/// Whether that flow runs, and the tuple is its.
#[inline(always)]
fn runs(splice: *const FlowEntry, direction: Direction, tuple: &Tuple) -> bool {
    is_of(splice, direction, tuple) && cas::state(splice) == FlowState::Offloaded
}

#[inline(always)]
fn is_of(splice: *const FlowEntry, direction: Direction, tuple: &Tuple) -> bool {
    // SAFETY: the entry lives until this program ends, and its tuples do not change.
    let FlowEntry { client_tuple: client, backend_tuple: backend, .. } = unsafe { &*splice };
    let own = match direction {
        Direction::Up => client,
        Direction::Down => backend,
    };
    let differs = |one: &[u8; 16], other: &[u8; 16]| {
        let ([a, b, c, d], [e, f, g, h]) = (words(one), words(other));
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)
    };
    let ports =
        (own.source_port ^ tuple.source_port) | (own.destination_port ^ tuple.destination_port);
    let different = differs(&own.source, &tuple.source)
        | differs(&own.destination, &tuple.destination)
        | u32::from(ports);
    different == 0
}
