//! `cargo xtask bench`: one topology, every candidate in every round.
//!
//! Candidates stand in the proxy's namespace. The back end is a thread that answers raw bytes behind a
//! real hello, so that no cryptography hides the forwarding. CPU is the whole machine's, client, back
//! end and soft interrupts included, from /proc/stat.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use snisplit_tests::client_hello::recorded_client_hellos;
use snisplit_tests::lab::Lab;

use candidate::Candidate;
use cpu_pinning::{CpuPinningGuard, SEPARATE_CORES, UNPINNED};
use load::{Load, serve};
use measurement::{cpu_times, measure, steal_share_since};

mod candidate;
mod cpu_pinning;
mod idle;
mod links;
mod load;
mod measurement;
mod redirect;
mod slow_clients;
mod vs_direct;
mod window;

const BACKEND_PORT: u16 = 8001;
/// What asks for nothing but the comparison with a cable.
const VS_DIRECT: &str = "beside";

/// What is asked for.
struct Plan {
    rounds: u64,
    time: Duration,
    /// A file for the results.
    out: String,
    candidates: Vec<&'static str>,
    /// What is compared with a cable.
    vs_direct: Vec<&'static str>,
    loads: Vec<Load>,
    /// Whether candidates are compared with each other, and with a cable.
    parts: [bool; 2],
    /// Whether it is all of the benchmark, but perhaps for some candidates.
    is_complete: bool,
}

impl Plan {
    fn read() -> Self {
        let mut words = std::env::args().skip(1);
        let mut number = |what: &str| words.next().and_then(|w| w.parse().ok()).expect(what);
        let (rounds, time) = (number("rounds"), Duration::from_secs(number("seconds")));
        let out = words.next().expect("a file for the results");
        let (names, words): (Vec<String>, Vec<String>) =
            words.partition(|word| candidate::is_candidate(word));
        let (parts, loads): (Vec<String>, Vec<String>) =
            words.into_iter().partition(|word| word == VS_DIRECT);
        let is_complete = loads.is_empty() && parts.is_empty();
        let [candidates, vs_direct] = [&candidate::ALL[..], &candidate::COMPARED_WITH_DIRECT]
            .map(|all| candidate::selected(all, &names));
        let parts = [parts.is_empty(), is_complete || !parts.is_empty()];
        let words = loads;
        let loads: Vec<Load> = Load::matching(&words).collect();
        assert!(!loads.is_empty(), "no load and no candidate has such a name: {words:?}");
        Self { rounds, time, out, candidates, vs_direct, loads, parts, is_complete }
    }
}

fn main() {
    let plan = Plan::read();
    let recorded =
        recorded_client_hellos().into_iter().find(|greeting| greeting.client == "chromium");
    let hello = recorded.expect("the greeting of chromium").bytes;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(maximum.is_none_or(|files| files >= 19_500), "`ulimit -Hn` is too low for idle flows");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let lab = Lab::new();
    links::add_direct_link(&lab);
    widen_port_ranges(&lab);
    let listener = listen(&lab, BACKEND_PORT);
    let expected = hello.len();
    thread::spawn(move || serve(&listener, expected));
    let before = cpu_times();
    let by_load = |part: usize, measure: fn(&Lab, Load, &[u8], &Plan) -> Vec<Value>| {
        let loads = plan.loads.iter().filter(|_| plan.parts[part]);
        loads.flat_map(|&load| measure(&lab, load, &hello, &plan)).collect::<Vec<Value>>()
    };
    let (results, vs_direct) = (by_load(0, run), by_load(1, vs_direct::run));
    println!("{:.1} % of the machine's time was stolen", steal_share_since(&before) * 100.0);
    if !plan.is_complete {
        return;
    }
    let idle = idle::run(&lab, &hello, &plan.candidates);
    let slow_clients = slow_clients::run(&lab, &hello, plan.rounds, plan.time);
    let machine = json!({ "cores": thread::available_parallelism().unwrap().get(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(),
        "haproxy": candidate::haproxy_version() });
    let all = json!({ "machine": machine, "seconds": plan.time.as_secs(), "rounds": plan.rounds,
        "stolen": steal_share_since(&before), "candidates": plan.candidates, "results": results,
        "beside": vs_direct, "idle": idle, "siege": slow_clients });
    fs::write(plan.out, serde_json::to_string_pretty(&all).unwrap()).unwrap();
}

/// A back end's listener, on all its addresses.
fn listen(lab: &Lab, port: u16) -> TcpListener {
    lab.in_backends(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap()
}

/// One load on all candidates.
fn run(lab: &Lab, load: Load, hello: &[u8], plan: &Plan) -> Vec<Value> {
    let Plan { rounds, time, candidates, .. } = plan;
    // What an exchange takes depends most on whether its ends share a core.
    let (placements, times): (&[usize], _) = if load.is_request_response() {
        (&[UNPINNED, SEPARATE_CORES], vs_direct::ROUND_FACTOR)
    } else {
        (&[UNPINNED], 1)
    };
    let mut results = Vec::new();
    for &cores in placements {
        let _until_measured = CpuPinningGuard::set(cores);
        let row =
            if cores == SEPARATE_CORES { format!("{}, 2 cores", load.name()) } else { load.name() };
        for round in 0..rounds * times {
            // Each round starts with another candidate, so that none always runs first.
            for turn in 0..candidates.len() {
                let name = candidates[(turn + round as usize) % candidates.len()];
                let candidate = Candidate::start(lab, name, BACKEND_PORT, hello);
                let target = (candidate.address(BACKEND_PORT), hello);
                let found = measure(lab, load, target, *time).into_json(load);
                println!("{row:<37} {name:<14} {}", format_result(&found, load));
                let mut result = json!({ "load": row, "unit": load.unit(), "round": round,
                    "candidate": name });
                result.as_object_mut().unwrap().extend(found.as_object().unwrap().clone());
                results.push(result);
            }
        }
    }
    results
}

/// What was found, for people.
fn format_result(found: &Value, load: Load) -> String {
    let number = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
    let line = format!("{:>10.2} {:<7} CPU {:.3}", number("rate"), load.unit(), number("cpu"));
    match found["p50"].as_f64() {
        Some(p50) => format!("{line} p50 {p50:.1} p99 {:.1}", number("p99")),
        None => line,
    }
}

/// Ports for connecting from. connect(2) searches half of them one by one (__inet_hash_connect), and
/// thousands are held by a crowd or are in TIME_WAIT: with the usual 28,000, and none of these used again,
/// its search is what is measured.
const CLIENT_PORTS: &str = "10240 65535";
/// The proxy's for all but the packet engine, and that one's: apart, for it searches what is reserved too.
const PROXY_PORTS: &str = "32768 65535";
const PACKET_ENGINE_PORTS: &str = "10240-32767";

fn widen_port_ranges(lab: &Lab) {
    let ports = |range: &str| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
    };
    lab.in_client(|| ports(CLIENT_PORTS));
    lab.in_proxy(|| ports(PROXY_PORTS));
}
