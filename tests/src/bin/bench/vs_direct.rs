//! Comparison with a direct link, of candidates that leave the path of packets or were never in it.
//!
//! The speed of the machine changes from one second to the next by more than the difference that is measured. So candidate
//! and direct link are measured in slices that alternate. Requests and responses use connections that stay open, so that
//! their start does not count; other loads use new connections.

use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::candidate::Candidate;
use crate::cpu_pinning::{CpuPinningGuard, SEPARATE_CORES, SHARED_CORE, UNPINNED};
use crate::load::{Load, Target};
use crate::measurement::{Measurement, OpenFlows, format_result, measure};
use crate::plan::Plan;
use crate::ports::BACKEND_PORT;

/// Length of a slice: short, but long enough for congestion windows to open, and for the ticks that CPU time is counted in.
const SLICE: Duration = Duration::from_millis(200);
/// Rounds for each round of the plan, here and for all requests and responses: their differences are smaller.
pub(crate) const ROUND_FACTOR: u64 = 2;

/// Measures one load on the selected candidates, for as long on the direct link as on the candidate.
pub(crate) fn run(lab: &Lab, load: Load, hello: &[u8], plan: &Plan) -> Vec<Value> {
    let candidates = (0..plan.rounds * ROUND_FACTOR).flat_map(|_| plan.vs_direct.iter().copied());
    let compare = |name| {
        let candidate = Candidate::start(lab, name, BACKEND_PORT, hello);
        let targets = [&candidate, &Candidate::Direct]
            .map(|one| Target { address: one.address(BACKEND_PORT), hello });
        let compare_on = |&cores: &usize| compare_on_cores(lab, load, name, targets, cores, plan);
        core_placements(load).iter().map(compare_on).collect::<Vec<Value>>()
    };
    candidates.flat_map(compare).collect()
}

fn compare_on_cores(
    lab: &Lab,
    load: Load,
    name: &str,
    targets: [Target<'_>; 2],
    cores: usize,
    plan: &Plan,
) -> Value {
    let _until_measured = CpuPinningGuard::set(cores);
    let open = || targets.map(|target| OpenFlows::open(lab, load, target));
    let open_flows = load.is_request_response().then(open);
    let measure_slice = |index: usize| match &open_flows {
        Some(open_flows) => open_flows[index].measure(SLICE),
        None => measure(lab, load, targets[index], SLICE),
    };
    let [result, direct] =
        alternate_slices(plan.time, measure_slice).map(|measured| measured.into_json(load));
    let load_name = load.name();
    println!("{load_name:<32} {name:<14} {} on {cores} core(s)", format_result(&result, load));
    println!("{:<32} {:<14} {}", "", "- direct link", format_result(&direct, load));
    json!({ "load": load_name, "candidate": name, "cores": cores, "candidate_result": result,
        "direct": direct })
}

/// Numbers of cores to pin client and back end to. On one core, a request and its response take processing time only, and
/// show differences best.
fn core_placements(load: Load) -> &'static [usize] {
    if load.is_request_response() {
        &[SEPARATE_CORES, UNPINNED, SHARED_CORE]
    } else {
        &[SEPARATE_CORES]
    }
}

/// Measures two targets in slices, `time` on each. The order is a b b a, so that a steady change of speed favours neither.
fn alternate_slices(
    time: Duration,
    measure_slice: impl Fn(usize) -> Measurement,
) -> [Measurement; 2] {
    let mut measured = [Measurement::default(), Measurement::default()];
    for turn in 0..2 * time.as_millis().div_ceil(SLICE.as_millis()) {
        let index = usize::from(matches!(turn % 4, 1 | 2));
        measured[index].merge(measure_slice(index));
    }
    measured
}
