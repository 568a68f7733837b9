//! Allocation of the slots of the flow table.

use std::collections::BTreeMap;

use snisplit_common::abi::packet::MAX_PACKET_FLOWS;

/// Slots of the flow table: allocated ones by the ID of their flow, and free ones.
#[derive(Debug, Default)]
pub(super) struct SlotAllocator {
    allocated: BTreeMap<u64, u32>,
    /// Free slots below `next`.
    released: Vec<u32>,
    /// First slot that was never allocated.
    next: u32,
}

impl SlotAllocator {
    /// Starts with the flows that a table holds already.
    pub(super) fn with_allocated(allocated: BTreeMap<u64, u32>) -> Self {
        let next = allocated.values().max().map_or(0, |last| last + 1);
        let mut is_free = vec![true; next as usize];
        allocated.values().for_each(|slot| is_free[*slot as usize] = false);
        let released = (0..next).filter(|slot| is_free[*slot as usize]).collect();
        Self { allocated, released, next }
    }

    /// Allocates a slot for a flow. `None`: the table is full.
    pub(super) fn allocate(&mut self, flow_id: u64) -> Option<u32> {
        let slot = match self.released.pop() {
            Some(slot) => slot,
            None if self.next < MAX_PACKET_FLOWS as u32 => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.allocated.insert(flow_id, slot);
        Some(slot)
    }

    /// Returns the slot of a flow.
    pub(super) fn slot_of(&self, flow_id: u64) -> Option<u32> {
        self.allocated.get(&flow_id).copied()
    }

    /// Returns the IDs and slots of all flows.
    pub(super) fn all(&self) -> Vec<(u64, u32)> {
        self.allocated.iter().map(|(flow_id, slot)| (*flow_id, *slot)).collect()
    }

    /// Frees the slot of a flow.
    pub(super) fn release(&mut self, flow_id: u64) {
        self.released.extend(self.allocated.remove(&flow_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_one_flow() {
        let mut slots = SlotAllocator::with_allocated(BTreeMap::from([(100, 3), (101, 1)]));
        let mut taken: Vec<u32> = (0..4).filter_map(|flow_id| slots.allocate(flow_id)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 2, 4, 5], "the free slots below the highest one are allocated too");
        assert_eq!((slots.slot_of(100), slots.slot_of(7)), (Some(3), None));
        slots.release(100);
        assert_eq!((slots.slot_of(100), slots.allocate(9)), (None, Some(3)));
        assert_eq!(slots.all().len(), 6);
    }

    #[test]
    fn full_table_allocates_nothing() {
        let mut slots = SlotAllocator::default();
        let all = MAX_PACKET_FLOWS as u64;
        assert!((0..all).all(|flow_id| slots.allocate(flow_id).is_some()));
        assert_eq!(slots.allocate(all), None);
        slots.release(5);
        assert_eq!(slots.allocate(all), Some(5));
    }
}
