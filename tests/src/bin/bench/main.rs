//! `cargo xtask bench`: every candidate in every round, in one topology.
//!
//! Candidates run in the proxy's namespace. The back end answers raw bytes behind a real ClientHello, so that forwarding
//! is measured and no cryptography. CPU time is that of the whole machine, with client, back end and soft interrupts.

use std::fs;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use snisplit_tests::client_hello::recorded_client_hellos;
use snisplit_tests::lab::Lab;

use candidate::Candidate;
use cpu_pinning::{CpuPinningGuard, SEPARATE_CORES, UNPINNED};
use cpu_time::{steal_share_since, times_by_state};
use load::{Load, Target, serve};
use measurement::{format_result, measure};
use plan::Plan;
use ports::{BACKEND_PORT, listen, widen_port_ranges};

mod candidate;
mod cpu_pinning;
mod cpu_time;
mod idle;
mod links;
mod load;
mod measurement;
mod plan;
mod ports;
mod redirect;
mod slow_clients;
mod vs_direct;
mod window;

fn main() {
    let plan = Plan::from_args();
    let recorded = recorded_client_hellos().into_iter().find(|hello| hello.client == "chromium");
    let hello = recorded.expect("the ClientHello of chromium").bytes;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(maximum.is_none_or(|files| files >= 19_500), "`ulimit -Hn` is too low for idle flows");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let lab = Lab::new();
    links::add_direct_link(&lab);
    widen_port_ranges(&lab);
    let listener = listen(&lab, BACKEND_PORT);
    let hello_len = hello.len();
    thread::spawn(move || serve(&listener, hello_len));
    let before = times_by_state();
    let for_loads = |is_selected: bool, measure: fn(&Lab, Load, &[u8], &Plan) -> Vec<Value>| {
        let loads = plan.loads.iter().filter(|_| is_selected);
        loads.flat_map(|&load| measure(&lab, load, &hello, &plan)).collect::<Vec<Value>>()
    };
    let results = for_loads(plan.compares_candidates, compare_candidates);
    let vs_direct = for_loads(plan.compares_with_direct, vs_direct::run);
    println!("steal: {:.1} % of the machine's CPU time", steal_share_since(&before) * 100.0);
    if !plan.is_complete {
        return;
    }
    let idle = idle::run(&lab, &hello, &plan.candidates);
    let slow_clients = slow_clients::run(&lab, &hello, plan.rounds, plan.time);
    let machine = json!({ "cores": thread::available_parallelism().unwrap().get(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(),
        "haproxy": candidate::haproxy_version() });
    let all = json!({ "machine": machine, "seconds": plan.time.as_secs(), "rounds": plan.rounds,
        "steal": steal_share_since(&before), "candidates": plan.candidates, "results": results,
        "vs_direct": vs_direct, "idle": idle, "slow_clients": slow_clients });
    fs::write(plan.out, serde_json::to_string_pretty(&all).unwrap()).unwrap();
}

/// Measures one load on all candidates.
fn compare_candidates(lab: &Lab, load: Load, hello: &[u8], plan: &Plan) -> Vec<Value> {
    let Plan { rounds, time, candidates, .. } = plan;
    // The time of a request and its response depends most on whether the peers share a core.
    let (placements, round_factor): (&[usize], _) = if load.is_request_response() {
        (&[UNPINNED, SEPARATE_CORES], vs_direct::ROUND_FACTOR)
    } else {
        (&[UNPINNED], 1)
    };
    let mut results = Vec::new();
    for &cores in placements {
        let _until_measured = CpuPinningGuard::set(cores);
        let row =
            if cores == SEPARATE_CORES { format!("{}, 2 cores", load.name()) } else { load.name() };
        for round in 0..rounds * round_factor {
            // Each round begins with another candidate, so that none is always the first.
            for turn in 0..candidates.len() {
                let name = candidates[(turn + round as usize) % candidates.len()];
                let candidate = Candidate::start(lab, name, BACKEND_PORT, hello);
                let target = Target { address: candidate.address(BACKEND_PORT), hello };
                let measured = measure(lab, load, target, *time).into_json(load);
                println!("{row:<37} {name:<14} {}", format_result(&measured, load));
                let mut result = json!({ "load": row, "unit": load.unit(), "round": round,
                    "candidate": name });
                result.as_object_mut().unwrap().extend(measured.as_object().unwrap().clone());
                results.push(result);
            }
        }
    }
    results
}
