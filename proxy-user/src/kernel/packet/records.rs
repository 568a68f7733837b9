//! The records of flows, by number and by whose packets they are of.

use std::mem;

use aya::maps::{HashMap, MapData, MapError};
use snisplit_common::abi::Direction;
use snisplit_common::abi::packet::{Leg, Splice};

use super::super::layout::{LegBytes, Plain as _, SpliceBytes, TupleBytes, encode};

pub(super) struct Records {
    splices: HashMap<MapData, u64, SpliceBytes>,
    tuples: HashMap<MapData, TupleBytes, LegBytes>,
    /// Flows that are nobody's any more, but are still there.
    gone: Vec<u64>,
}

impl Records {
    pub(super) const fn new(
        splices: HashMap<MapData, u64, SpliceBytes>,
        tuples: HashMap<MapData, TupleBytes, LegBytes>,
    ) -> Self {
        Self { splices, tuples, gone: Vec::new() }
    }

    pub(super) fn get(&self, number: u64) -> Option<Splice> {
        self.splices.get(&number, 0).ok().map(|bytes| Splice::get(&bytes))
    }

    pub(super) fn all(&self) -> Vec<(u64, Splice)> {
        let all = self.splices.iter().flatten();
        all.map(|(number, bytes)| (number, Splice::get(&bytes))).collect()
    }

    pub(super) fn arm(&mut self, number: u64, splice: &Splice) -> Result<(), MapError> {
        self.splices.insert(number, encode::<{ size_of::<Splice>() }>(splice), 0)?;
        let mut legs = legs(number, splice).into_iter();
        legs.try_for_each(|(tuple, leg)| self.tuples.insert(tuple, leg, 0))
    }

    /// No program finds it any more, unless it has its number already. A tuple that is another flow's by now
    /// stays that one's.
    pub(super) fn part(&mut self, number: u64, splice: &Splice) {
        for (tuple, leg) in legs(number, splice) {
            if self.tuples.get(&tuple, 0).is_ok_and(|found| found == leg) {
                let _gone_already = self.tuples.remove(&tuple);
            }
        }
        self.gone.push(number);
    }

    /// The same of one that has no tuples any more.
    pub(super) fn leave(&mut self, number: u64) {
        self.gone.push(number);
    }

    /// Those that are to be erased, each told once.
    pub(super) fn gone(&mut self) -> Vec<u64> {
        mem::take(&mut self.gone)
    }

    pub(super) fn erase(&mut self, number: u64) {
        let _gone_already = self.splices.remove(&number);
    }
}

fn legs(number: u64, splice: &Splice) -> [(TupleBytes, LegBytes); 2] {
    let leg =
        |tuple, direction| (encode(tuple), encode(&Leg { splice: number, direction, reserved: 0 }));
    [leg(&splice.client, Direction::Up), leg(&splice.backend, Direction::Down)]
}
