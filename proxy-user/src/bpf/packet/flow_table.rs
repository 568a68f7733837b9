//! Entries of flows by ID, and their tuples.

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

/// Table of flows, which several threads write at the same time.
///
/// The kernel allows concurrent writes, aya allows one writer for each descriptor. So the table has several
/// descriptors of each map.
pub(super) struct FlowTable {
    writers: Vec<Mutex<Writer>>,
    slots: Mutex<SlotAllocator>,
    /// Held for writing between the check and the removal of a tuple, and for reading during an insertion.
    /// So no other flow takes the tuple in between.
    unlink_lock: RwLock<()>,
    /// IDs of removed flows that still have a slot.
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
    /// Opens a table with the flows that its maps hold already.
    ///
    /// # Errors
    /// Fails if the kernel does not duplicate a descriptor.
    pub(super) fn new(entries: Map, tuples: Map) -> Result<Self, BpfError> {
        // One thread of each core inserts flows, and one more thread reclaims slots.
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

    /// Returns a writer that no other thread uses, if there is one.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        let free = self.writers.iter().find_map(|writer| writer.try_lock().ok());
        free.unwrap_or_else(|| lock(&self.writers[0]))
    }

    /// Returns the slot of a flow.
    pub(super) fn slot_of(&self, flow_id: u64) -> Option<u32> {
        lock(&self.slots).slot_of(flow_id)
    }

    /// Returns the entry of a flow.
    pub(super) fn get(&self, flow_id: u64) -> Option<FlowEntry> {
        let slot = self.slot_of(flow_id)?;
        self.writer().entries.get(&slot, 0).ok().and_then(|bytes| decode(&bytes))
    }

    /// Returns the IDs and entries of all flows.
    pub(super) fn all(&self) -> Vec<(u64, FlowEntry)> {
        let all = lock(&self.slots).all();
        let writer = self.writer();
        let read = |(flow_id, slot)| Some((flow_id, decode(&writer.entries.get(&slot, 0).ok()?)?));
        all.into_iter().filter_map(read).collect()
    }

    /// Inserts a flow: its entry first, then its tuples.
    ///
    /// # Errors
    /// Fails if a map is full.
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

    /// Removes the tuples of a flow, and retires the flow. Tuples that belong to another flow already stay.
    ///
    /// A program that has found the flow before may still use its entry.
    pub(super) fn unlink(&self, flow_id: u64, entry: &FlowEntry) {
        let _no_insert = self.unlink_lock.write().unwrap_or_else(PoisonError::into_inner);
        let tuples = &mut self.writer().tuples;
        for (tuple, tuple_entry) in
            self.slot_of(flow_id).iter().flat_map(|slot| tuple_entries(flow_id, *slot, entry))
        {
            if tuples.get(&tuple, 0).is_ok_and(|found| found == tuple_entry) {
                let _already_removed = tuples.remove(&tuple);
            }
        }
        self.retire(flow_id);
    }

    /// Marks the slot of a flow without tuples for [`reclaim`](Self::reclaim).
    pub(super) fn retire(&self, flow_id: u64) {
        lock(&self.retired).push(flow_id);
    }

    /// Returns the IDs of retired flows, and clears the list.
    pub(super) fn take_retired(&self) -> Vec<u64> {
        mem::take(&mut lock(&self.retired))
    }

    /// Clears the entries of flows and frees their slots. No program may use the entries at that time.
    pub(super) fn reclaim(&self, flow_ids: &[u64]) {
        let entries = &mut self.writer().entries;
        for slot in flow_ids.iter().filter_map(|flow_id| self.slot_of(*flow_id)) {
            // A slot of the table is always writable.
            let _always_ok = entries.set(slot, [0; size_of::<FlowEntry>()], 0);
        }
        let mut slots = lock(&self.slots);
        flow_ids.iter().for_each(|flow_id| slots.release(*flow_id));
    }
}

/// Opens another descriptor of a map.
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

/// Returns the slots of all flows that have a tuple, by ID. It ignores slots outside the table, as the
/// programs do.
pub(in crate::bpf) fn slots_by_flow(
    tuples: &HashMap<MapData, TupleBytes, TupleEntryBytes>,
) -> BTreeMap<u64, u32> {
    let all = tuples.iter().flatten().filter_map(|(_, entry)| decode::<TupleEntry>(&entry));
    let live = all.filter(|entry| (entry.slot as usize) < MAX_PACKET_FLOWS);
    live.map(|TupleEntry { flow_id, slot, .. }| (flow_id, slot)).collect()
}

/// Returns the keys and values of a flow in the map of tuples.
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
