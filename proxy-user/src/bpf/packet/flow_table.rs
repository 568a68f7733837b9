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

use super::slot_allocator::SlotAllocator;
use crate::bpf::codec::{FlowEntryBytes, TupleBytes, TupleEntryBytes, decode, encode};
use crate::bpf::error::BpfError;

/// The kernel lets many write at once, aya one for each descriptor.
pub(super) struct FlowTable {
    writers: Vec<Mutex<Writer>>,
    slots: Mutex<SlotAllocator>,
    /// Written to by who looks whose a tuple is before it goes: nobody makes it another flow's meanwhile.
    unlink_lock: RwLock<()>,
    /// Flows that are nobody's any more, but are still there.
    retired: Mutex<Vec<u64>>,
}

struct Writer {
    entries: Array<MapData, FlowEntryBytes>,
    tuples: HashMap<MapData, TupleBytes, TupleEntryBytes>,
}

impl Writer {
    fn new(entries: Map, tuples: Map) -> Result<Mutex<Self>, BpfError> {
        Ok(Mutex::new(Self { entries: entries.try_into()?, tuples: tuples.try_into()? }))
    }
}

impl FlowTable {
    pub(super) fn new(entries: Map, tuples: Map) -> Result<Self, BpfError> {
        // A thread for each core begins flows, and one erases what is left of others.
        let threads = available_parallelism().map_or(1, usize::from);
        let mut writers = (0..threads)
            .map(|_| {
                Writer::new(
                    dup_map(&entries, PACKET_FLOWS_MAP)?,
                    dup_map(&tuples, PACKET_TUPLES_MAP)?,
                )
            })
            .collect::<Result<Vec<_>, BpfError>>()?;
        let last = Writer::new(entries, tuples)?;
        let slots = Mutex::new(SlotAllocator::with_allocated(slots_by_flow(&lock(&last).tuples)));
        writers.push(last);
        Ok(Self { writers, slots, unlink_lock: RwLock::default(), retired: Mutex::default() })
    }

    /// One that nobody else has, as a rule.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        let free = self.writers.iter().find_map(|writer| writer.try_lock().ok());
        free.unwrap_or_else(|| lock(&self.writers[0]))
    }

    /// Where a flow's record is.
    pub(super) fn slot_of(&self, flow_id: u64) -> Option<u32> {
        lock(&self.slots).slot_of(flow_id)
    }

    pub(super) fn get(&self, flow_id: u64) -> Option<FlowEntry> {
        let slot = self.slot_of(flow_id)?;
        self.writer().entries.get(&slot, 0).ok().and_then(|bytes| decode(&bytes))
    }

    pub(super) fn all(&self) -> Vec<(u64, FlowEntry)> {
        let all = lock(&self.slots).all();
        let writer = self.writer();
        let read = |(flow_id, slot)| Some((flow_id, decode(&writer.entries.get(&slot, 0).ok()?)?));
        all.into_iter().filter_map(read).collect()
    }

    pub(super) fn insert(&self, flow_id: u64, entry: &FlowEntry) -> Result<(), MapError> {
        let _no_unlink = self.unlink_lock.read().unwrap_or_else(PoisonError::into_inner);
        let Writer { entries, tuples } = &mut *self.writer();
        let capacity = MAX_PACKET_FLOWS as u32;
        let full = MapError::OutOfBounds { index: capacity, max_entries: capacity };
        let slot = lock(&self.slots).allocate(flow_id).ok_or(full)?;
        let bytes: FlowEntryBytes = encode(&FlowEntry { id: flow_id, ..*entry });
        entries.set(slot, bytes, 0)?;
        let mut to_insert = tuple_entries(flow_id, slot, entry).into_iter();
        to_insert.try_for_each(|(tuple, tuple_entry)| tuples.insert(tuple, tuple_entry, 0))
    }

    /// No program finds it any more, unless it has its number already. A tuple that is another flow's by now
    /// stays that one's.
    pub(super) fn unlink(&self, flow_id: u64, entry: &FlowEntry) {
        let _no_insert = self.unlink_lock.write().unwrap_or_else(PoisonError::into_inner);
        let tuples = &mut self.writer().tuples;
        for (tuple, tuple_entry) in
            self.slot_of(flow_id).iter().flat_map(|slot| tuple_entries(flow_id, *slot, entry))
        {
            if tuples.get(&tuple, 0).is_ok_and(|found| found == tuple_entry) {
                let _gone_already = tuples.remove(&tuple);
            }
        }
        self.retire(flow_id);
    }

    /// The same of one that has no tuples any more.
    pub(super) fn retire(&self, flow_id: u64) {
        lock(&self.retired).push(flow_id);
    }

    /// Those that are to be erased, each told once.
    pub(super) fn take_retired(&self) -> Vec<u64> {
        mem::take(&mut lock(&self.retired))
    }

    pub(super) fn reclaim(&self, flow_ids: &[u64]) {
        let entries = &mut self.writer().entries;
        for slot in flow_ids.iter().filter_map(|flow_id| self.slot_of(*flow_id)) {
            // Cannot fail: it is one of the table's.
            let _erased = entries.set(slot, [0; size_of::<FlowEntry>()], 0);
        }
        let mut slots = lock(&self.slots);
        flow_ids.iter().for_each(|flow_id| slots.release(*flow_id));
    }
}

/// Another descriptor of the same map.
fn dup_map(map: &Map, name: &'static str) -> Result<Map, BpfError> {
    let (Map::HashMap(data) | Map::Array(data)) = map else {
        return Err(BpfError::MissingFromObject(name));
    };
    let descriptor = data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
    let data = MapData::from_fd(descriptor)?;
    Ok(if matches!(map, Map::Array(_)) { Map::Array(data) } else { Map::HashMap(data) })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All flows that a tuple leads to, and which records they have. A slot beyond the table is none, as for the programs.
pub(in crate::bpf) fn slots_by_flow(
    tuples: &HashMap<MapData, TupleBytes, TupleEntryBytes>,
) -> BTreeMap<u64, u32> {
    let all = tuples.iter().flatten().filter_map(|(_, entry)| decode::<TupleEntry>(&entry));
    let live = all.filter(|entry| (entry.slot as usize) < MAX_PACKET_FLOWS);
    live.map(|TupleEntry { flow_id, slot, .. }| (flow_id, slot)).collect()
}

pub(super) fn tuple_entries(
    flow_id: u64,
    slot: u32,
    entry: &FlowEntry,
) -> [(TupleBytes, TupleEntryBytes); 2] {
    let tuple_entry =
        |tuple, direction| (encode(tuple), encode(&TupleEntry { flow_id, direction, slot }));
    [
        tuple_entry(&entry.client_tuple, Direction::Up),
        tuple_entry(&entry.backend_tuple, Direction::Down),
    ]
}
