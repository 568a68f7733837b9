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
use snisplit_tests::hello::recorded;
use snisplit_tests::lab::Lab;

use candidate::Candidate;
use load::{Load, measure, serve};

mod candidate;
mod idle;
mod links;
mod load;
mod siege;

const BACKEND_PORT: u16 = 8001;

fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = |what: &str| words.next().and_then(|w| w.parse::<u64>().ok()).expect(what);
    let (rounds, seconds) = (number("rounds"), Duration::from_secs(number("seconds")));
    let out = words.next().expect("a file for the results");
    let (names, loads): (Vec<String>, Vec<String>) =
        words.partition(|word| candidate::is_one(word));
    let candidates = candidate::chosen(&names);
    let greeting = recorded().into_iter().find(|greeting| greeting.client == "chromium");
    let hello = greeting.expect("the greeting of chromium").bytes;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(maximum.is_none_or(|files| files >= 19_500), "`ulimit -Hn` is too low for idle flows");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let lab = Lab::new();
    links::join_directly(&lab);
    widen(&lab);
    let listener = listen(&lab, BACKEND_PORT);
    let expected = hello.len();
    thread::spawn(move || serve(&listener, expected));
    let terms = (rounds, seconds);
    let results = Load::chosen(&loads).flat_map(|load| run(&lab, load, &hello, &candidates, terms));
    let results: Vec<Value> = results.collect();
    if !loads.is_empty() {
        assert!(!results.is_empty(), "no load and no candidate has such a name: {loads:?}");
        return;
    }
    let idle = idle::run(&lab, &hello, &candidates);
    let siege = siege::run(&lab, &hello, rounds, seconds);
    let machine = json!({ "cores": thread::available_parallelism().unwrap().get(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(),
        "haproxy": candidate::haproxy_version() });
    let all = json!({ "machine": machine, "seconds": seconds.as_secs(), "rounds": rounds,
        "candidates": candidates, "results": results, "idle": idle, "siege": siege });
    fs::write(out, serde_json::to_string_pretty(&all).unwrap()).unwrap();
}

/// A back end's listener, on all its addresses.
fn listen(lab: &Lab, port: u16) -> TcpListener {
    lab.backends(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap()
}

/// One load on all candidates, in so many rounds of so long.
fn run(
    lab: &Lab,
    load: Load,
    hello: &[u8],
    candidates: &[&str],
    (rounds, time): (u64, Duration),
) -> Vec<Value> {
    let mut results = Vec::new();
    for round in 0..rounds {
        // Each round starts with another candidate, so that none always runs first.
        for turn in 0..candidates.len() {
            let name = candidates[(turn + round as usize) % candidates.len()];
            let candidate = Candidate::start(lab, name, BACKEND_PORT, hello);
            let measured = measure(lab, load, candidate.address(BACKEND_PORT), hello, time);
            let (rate, cpu) = (measured.rate, measured.cpu);
            println!("{:<28} {name:<14} {rate:>10.2} {:<7} {cpu:.3}", load.name(), load.unit());
            let mut result = json!({ "load": load.name(), "unit": load.unit(), "round": round,
                "candidate": name });
            result.as_object_mut().unwrap().extend(measured.json().as_object().unwrap().clone());
            results.push(result);
        }
    }
    results
}

/// Ports for connecting from. connect(2) searches half of them one by one (__inet_hash_connect), and
/// thousands are held by a crowd or are in TIME_WAIT: with the usual 28,000, and none of these used again,
/// its search is what is measured.
fn widen(lab: &Lab) {
    let ports = || {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65535").unwrap();
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
    };
    lab.client(ports);
    lab.proxy(ports);
}
