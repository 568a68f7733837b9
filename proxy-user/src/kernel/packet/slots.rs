//! Which record of the table is whose.

use std::collections::BTreeMap;

use snisplit_common::abi::packet::MAX_PACKET_FLOWS;

/// The records of a table: those that flows have, by their numbers, and those that nobody has.
#[derive(Debug, Default)]
pub(super) struct Slots {
    taken: BTreeMap<u64, u32>,
    /// Given back.
    free: Vec<u32>,
    /// From here on none was ever taken.
    next: u32,
}

impl Slots {
    /// Of a table in which these flows are.
    pub(super) fn with(taken: BTreeMap<u64, u32>) -> Self {
        let next = taken.values().max().map_or(0, |last| last + 1);
        let mut is_free = vec![true; next as usize];
        taken.values().for_each(|slot| is_free[*slot as usize] = false);
        let free = (0..next).filter(|slot| is_free[*slot as usize]).collect();
        Self { taken, free, next }
    }

    /// A record for a flow; `None` if there is no more.
    pub(super) fn take(&mut self, number: u64) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.next < MAX_PACKET_FLOWS as u32 => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        self.taken.insert(number, slot);
        Some(slot)
    }

    /// The record of a flow.
    pub(super) fn of(&self, number: u64) -> Option<u32> {
        self.taken.get(&number).copied()
    }

    /// All flows, and their records.
    pub(super) fn all(&self) -> Vec<(u64, u32)> {
        self.taken.iter().map(|(number, slot)| (*number, *slot)).collect()
    }

    /// That flow's record is nobody's.
    pub(super) fn give_back(&mut self, number: u64) {
        self.free.extend(self.taken.remove(&number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_has_one_owner() {
        let mut slots = Slots::with(BTreeMap::from([(100, 3), (101, 1)]));
        let mut taken: Vec<u32> = (0..4).filter_map(|number| slots.take(number)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 2, 4, 5], "those in between are taken too");
        assert_eq!((slots.of(100), slots.of(7)), (Some(3), None));
        slots.give_back(100);
        assert_eq!((slots.of(100), slots.take(9)), (None, Some(3)));
        assert_eq!(slots.all().len(), 6);
    }

    #[test]
    fn a_table_that_is_full_has_no_more() {
        let mut slots = Slots::default();
        let all = MAX_PACKET_FLOWS as u64;
        assert!((0..all).all(|number| slots.take(number).is_some()));
        assert_eq!(slots.take(all), None);
        slots.give_back(5);
        assert_eq!(slots.take(all), Some(5));
    }
}
