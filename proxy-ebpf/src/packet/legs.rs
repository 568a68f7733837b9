//! Whose packets arrive by a tuple.

use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{Leg, Splice, SpliceState, Tuple};

use crate::cas;
use crate::headers::words;
use crate::maps::{SPLICES, TUPLES};

/// The flow whose packets arrive by a tuple. What is said of the tuple may be of another one already, once
/// it has gone (`htab_elem_free`, kernel/bpf/hashtab.c); the flow knows better, whose record stays while a
/// program has it (`Wish::LetGo`).
#[inline(always)]
pub(crate) fn find(tuple: &Tuple) -> Option<(Direction, *mut Splice)> {
    look_up(tuple).map(|(leg, splice)| (leg.direction, splice))
}

#[inline(always)]
fn look_up(tuple: &Tuple) -> Option<(Leg, *mut Splice)> {
    // SAFETY: written by user space before the flow begins.
    let leg = *unsafe { TUPLES.get(tuple) }?;
    let splice = SPLICES.get_ptr_mut(leg.slot)?;
    is_of(splice, leg.direction, tuple).then_some((leg, splice))
}

/// Which flow it is.
#[inline(always)]
pub(crate) fn number(splice: *const Splice) -> u64 {
    // SAFETY: the entry lives until this program ends, and its number does not change.
    unsafe { (*splice).number }
}

/// What was found by a tuple.
#[repr(C)]
struct Known {
    slot: u32,
    direction: Direction,
    tag: u32,
}

const KNOWN_MAX: usize = 512;

/// What this CPU has found: a look-up by a slot takes less than one by a tuple. Who has the slot by now shows
/// there; a flow that has ended is looked up by its tuple, which may be another's.
#[repr(C)]
pub(crate) struct Legs([Known; KNOWN_MAX]);

impl Legs {
    #[inline(always)]
    pub(crate) fn find(&mut self, tuple: &Tuple) -> Option<(Direction, *mut Splice)> {
        let tag = tag(tuple);
        let known = self.0.get_mut((tag.wrapping_mul(0x9e37_79b1) >> 23) as usize)?;
        let Known { slot, direction, .. } = *known;
        if known.tag == tag
            && let Some(splice) = SPLICES.get_ptr_mut(slot)
            && runs(splice, direction, tuple)
        {
            return Some((direction, splice));
        }
        let (Leg { slot, direction, .. }, splice) = look_up(tuple)?;
        *known = Known { slot, direction, tag };
        Some((direction, splice))
    }
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
fn runs(splice: *const Splice, direction: Direction, tuple: &Tuple) -> bool {
    is_of(splice, direction, tuple) && cas::state(splice) == SpliceState::Spliced
}

#[inline(always)]
fn is_of(splice: *const Splice, direction: Direction, tuple: &Tuple) -> bool {
    // SAFETY: the entry lives until this program ends, and its tuples do not change.
    let Splice { client, backend, .. } = unsafe { &*splice };
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
