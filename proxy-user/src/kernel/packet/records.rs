//! The records of flows, by number and by whose packets they are of.

use std::collections::BTreeMap;
use std::mem;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::available_parallelism;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{
    FlowEntry, MAX_PACKET_FLOWS, PACKET_FLOWS_MAP, PACKET_TUPLES_MAP, TupleEntry,
};

use super::super::KernelError;
use super::super::layout::{LegBytes, Plain as _, SpliceBytes, TupleBytes, encode};
use super::slots::Slots;

/// The kernel lets many write at once, aya one for each descriptor.
pub(super) struct Records {
    writers: Vec<Mutex<Writer>>,
    slots: Mutex<Slots>,
    /// Written to by who looks whose a tuple is before it goes: nobody makes it another flow's meanwhile.
    parting: RwLock<()>,
    /// Flows that are nobody's any more, but are still there.
    gone: Mutex<Vec<u64>>,
}

struct Writer {
    splices: Array<MapData, SpliceBytes>,
    tuples: HashMap<MapData, TupleBytes, LegBytes>,
}

impl Writer {
    fn new(splices: Map, tuples: Map) -> Result<Mutex<Self>, KernelError> {
        Ok(Mutex::new(Self { splices: splices.try_into()?, tuples: tuples.try_into()? }))
    }
}

impl Records {
    pub(super) fn new(splices: Map, tuples: Map) -> Result<Self, KernelError> {
        // A thread for each core begins flows, and one erases what is left of others.
        let others = available_parallelism().map_or(1, usize::from);
        let mut writers = (0..others)
            .map(|_| {
                Writer::new(
                    another(&splices, PACKET_FLOWS_MAP)?,
                    another(&tuples, PACKET_TUPLES_MAP)?,
                )
            })
            .collect::<Result<Vec<_>, KernelError>>()?;
        let last = Writer::new(splices, tuples)?;
        let slots = Mutex::new(Slots::with(slots(&lock(&last).tuples)));
        writers.push(last);
        Ok(Self { writers, slots, parting: RwLock::default(), gone: Mutex::default() })
    }

    /// One that nobody else has, as a rule.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        let free = self.writers.iter().find_map(|writer| writer.try_lock().ok());
        free.unwrap_or_else(|| lock(&self.writers[0]))
    }

    /// Where a flow's record is.
    pub(super) fn slot(&self, number: u64) -> Option<u32> {
        lock(&self.slots).of(number)
    }

    pub(super) fn get(&self, number: u64) -> Option<FlowEntry> {
        let slot = self.slot(number)?;
        self.writer().splices.get(&slot, 0).ok().map(|bytes| FlowEntry::get(&bytes))
    }

    pub(super) fn all(&self) -> Vec<(u64, FlowEntry)> {
        let all = lock(&self.slots).all();
        let writer = self.writer();
        let read =
            |(number, slot)| Some((number, FlowEntry::get(&writer.splices.get(&slot, 0).ok()?)));
        all.into_iter().filter_map(read).collect()
    }

    pub(super) fn arm(&self, number: u64, splice: &FlowEntry) -> Result<(), MapError> {
        let _nobody_parts = self.parting.read().unwrap_or_else(PoisonError::into_inner);
        let Writer { splices, tuples } = &mut *self.writer();
        let most = MAX_PACKET_FLOWS as u32;
        let full = MapError::OutOfBounds { index: most, max_entries: most };
        let slot = lock(&self.slots).take(number).ok_or(full)?;
        splices.set(
            slot,
            encode::<{ size_of::<FlowEntry>() }>(&FlowEntry { id: number, ..*splice }),
            0,
        )?;
        let mut legs = legs((number, slot), splice).into_iter();
        legs.try_for_each(|(tuple, leg)| tuples.insert(tuple, leg, 0))
    }

    /// No program finds it any more, unless it has its number already. A tuple that is another flow's by now
    /// stays that one's.
    pub(super) fn part(&self, number: u64, splice: &FlowEntry) {
        let _nobody_arms = self.parting.write().unwrap_or_else(PoisonError::into_inner);
        let tuples = &mut self.writer().tuples;
        for (tuple, leg) in self.slot(number).iter().flat_map(|slot| legs((number, *slot), splice))
        {
            if tuples.get(&tuple, 0).is_ok_and(|found| found == leg) {
                let _gone_already = tuples.remove(&tuple);
            }
        }
        self.leave(number);
    }

    /// The same of one that has no tuples any more.
    pub(super) fn leave(&self, number: u64) {
        lock(&self.gone).push(number);
    }

    /// Those that are to be erased, each told once.
    pub(super) fn gone(&self) -> Vec<u64> {
        mem::take(&mut lock(&self.gone))
    }

    pub(super) fn erase(&self, numbers: &[u64]) {
        let splices = &mut self.writer().splices;
        for slot in numbers.iter().filter_map(|number| self.slot(*number)) {
            // Cannot fail: it is one of the table's.
            let _erased = splices.set(slot, [0; size_of::<FlowEntry>()], 0);
        }
        let mut slots = lock(&self.slots);
        numbers.iter().for_each(|number| slots.give_back(*number));
    }
}

/// Another descriptor of the same map.
fn another(map: &Map, name: &'static str) -> Result<Map, KernelError> {
    let (Map::HashMap(data) | Map::Array(data)) = map else {
        return Err(KernelError::Missing(name));
    };
    let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
    let data = MapData::from_fd(descriptor)?;
    Ok(if matches!(map, Map::Array(_)) { Map::Array(data) } else { Map::HashMap(data) })
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All flows that a tuple leads to, and which records they have. A slot beyond the table is none, as for the programs.
pub(in super::super) fn slots(
    tuples: &HashMap<MapData, TupleBytes, LegBytes>,
) -> BTreeMap<u64, u32> {
    let legs = tuples.iter().flatten().map(|(_, leg)| TupleEntry::get(&leg));
    let legs = legs.filter(|leg| (leg.slot as usize) < MAX_PACKET_FLOWS);
    legs.map(|TupleEntry { flow_id: splice, slot, .. }| (splice, slot)).collect()
}

pub(super) fn legs((number, slot): (u64, u32), splice: &FlowEntry) -> [(TupleBytes, LegBytes); 2] {
    let leg = |tuple, direction| {
        (encode(tuple), encode(&TupleEntry { flow_id: number, direction, slot }))
    };
    [leg(&splice.client_tuple, Direction::Up), leg(&splice.backend_tuple, Direction::Down)]
}
