//! What leaves the path, or never was in it, beside the cable that it is compared with.
//!
//! The machine's pace moves by more, from one second to the next, than what is to be told apart here. So
//! both are measured in slices that take turns: exchanges on connections that stay, so that nothing of their
//! beginnings is in it, and the rest on new ones.

use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::candidate::Candidate;
use crate::cpu_pinning::{CpuPinningGuard, SEPARATE_CORES, SHARED_CORE, UNPINNED};
use crate::load::Load;
use crate::measurement::{Measurement, OpenFlows, measure};
use crate::{BACKEND_PORT, Plan, format_result};

/// Short, and long enough for connections to open up and for the ticks that CPU time comes in.
const SLICE: Duration = Duration::from_millis(200);
/// Rounds for each one of the benchmark's, here and for all exchanges: these differ by less.
pub(crate) const ROUND_FACTOR: u64 = 2;

/// One load on those of them that are chosen; in each round so long on a candidate, and as long on the cable.
pub(crate) fn run(lab: &Lab, load: Load, hello: &[u8], plan: &Plan) -> Vec<Value> {
    let candidates = (0..plan.rounds * ROUND_FACTOR).flat_map(|_| plan.vs_direct.iter().copied());
    let compare = |name| {
        let candidate = Candidate::start(lab, name, BACKEND_PORT, hello);
        let addresses = [candidate.address(BACKEND_PORT), Candidate::Direct.address(BACKEND_PORT)];
        let measure_placement = |&cores: &usize| {
            let _until_measured = CpuPinningGuard::set(cores);
            let open = || addresses.map(|to| OpenFlows::open(lab, load, (to, hello)));
            let open_flows = load.is_request_response().then(open);
            let slice = |way: usize| match &open_flows {
                Some(standing) => standing[way].work(SLICE),
                None => measure(lab, load, (addresses[way], hello), SLICE),
            };
            let [own, cable] = alternate_slices(plan.time, slice);
            let [own, cable] = [own, cable].map(|found| found.into_json(load));
            println!(
                "{:<28} {name:<14} {} on {cores} core(s)",
                load.name(),
                format_result(&own, load)
            );
            println!("{:<28} {:<14} {}", "", "- cable", format_result(&cable, load));
            json!({ "load": load.name(), "candidate": name, "cores": cores, "own": own,
                "cable": cable })
        };
        core_placements(load).iter().map(measure_placement).collect::<Vec<Value>>()
    };
    candidates.flat_map(compare).collect()
}

/// An exchange on one core takes nothing but processing, and shows most.
fn core_placements(load: Load) -> &'static [usize] {
    if load.is_request_response() {
        &[SEPARATE_CORES, UNPINNED, SHARED_CORE]
    } else {
        &[SEPARATE_CORES]
    }
}

/// Slices of both ways, `time` for each: a b b a, so that a pace that only falls favours neither.
fn alternate_slices(time: Duration, slice: impl Fn(usize) -> Measurement) -> [Measurement; 2] {
    let mut found = [Measurement::default(), Measurement::default()];
    for turn in 0..2 * time.as_millis().div_ceil(SLICE.as_millis()) {
        let way = usize::from(matches!(turn % 4, 1 | 2));
        found[way].merge(slice(way));
    }
    found
}
