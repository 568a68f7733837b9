//! What leaves the path, or never was in it, beside the cable that it is compared with.
//!
//! The machine's pace moves by more, from one second to the next, than what is to be told apart here. So
//! both are measured in slices that take turns: exchanges on connections that stay, so that nothing of their
//! beginnings is in it, and the rest on new ones.

use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::candidate::Candidate;
use crate::load::Load;
use crate::measured::{Measured, Standing, measure};
use crate::places::{ANY, EACH, Kept, ONE};
use crate::{BACKEND_PORT, Plan, line};

/// Short, and long enough for connections to open up and for the ticks that CPU time comes in.
const SLICE: Duration = Duration::from_millis(200);
/// Rounds for each one of the benchmark's, here and for all exchanges: these differ by less.
pub(crate) const TIMES: u64 = 2;

/// One load on those of them that are chosen; in each round so long on a candidate, and as long on the cable.
pub(crate) fn run(lab: &Lab, load: Load, hello: &[u8], plan: &Plan) -> Vec<Value> {
    let turns = (0..plan.rounds * TIMES).flat_map(|_| plan.beside.iter().copied());
    let compare = |name| {
        let candidate = Candidate::start(lab, name, BACKEND_PORT, hello);
        let ways = [candidate.address(BACKEND_PORT), Candidate::Direct.address(BACKEND_PORT)];
        let on = |&cores: &usize| {
            let _until_measured = Kept::to(cores);
            let open = || ways.map(|to| Standing::open(lab, load, (to, hello)));
            let standing = load.is_exchange().then(open);
            let slice = |way: usize| match &standing {
                Some(standing) => standing[way].work(SLICE),
                None => measure(lab, load, (ways[way], hello), SLICE),
            };
            let [own, cable] = in_turns(plan.time, slice);
            let [own, cable] = [own, cable].map(|found| found.json(load));
            println!("{:<28} {name:<14} {} on {cores} core(s)", load.name(), line(&own, load));
            println!("{:<28} {:<14} {}", "", "- cable", line(&cable, load));
            json!({ "load": load.name(), "candidate": name, "cores": cores, "own": own,
                "cable": cable })
        };
        cores(load).iter().map(on).collect::<Vec<Value>>()
    };
    turns.flat_map(compare).collect()
}

/// An exchange on one core takes nothing but processing, and shows most.
fn cores(load: Load) -> &'static [usize] {
    if load.is_exchange() { &[EACH, ANY, ONE] } else { &[EACH] }
}

/// Slices of both ways, `time` for each: a b b a, so that a pace that only falls favours neither.
fn in_turns(time: Duration, slice: impl Fn(usize) -> Measured) -> [Measured; 2] {
    let mut found = [Measured::default(), Measured::default()];
    for turn in 0..2 * time.as_millis().div_ceil(SLICE.as_millis()) {
        let way = usize::from(matches!(turn % 4, 1 | 2));
        found[way].add(slice(way));
    }
    found
}
