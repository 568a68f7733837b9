//! Memory of idle flows, in the process and in the kernel.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::candidate::Candidate;
use crate::load::{SMALL_MESSAGE_LEN, Target, send_request};
use crate::ports::listen;

/// Number of flows that 20,000 descriptors suffice for, a usual hard limit.
const FLOWS: usize = 8_000;
const WARM_UP_FLOWS: usize = 400;
const PORT: u16 = 8002;

/// Measures bytes per flow for each candidate.
pub(crate) fn run(lab: &Lab, hello: &[u8], candidates: &[&str]) -> Value {
    let listener = listen(lab, PORT);
    let (served, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let all: Vec<Value> = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, hello.len(), &served, &over));
        let one = |name: &&str| {
            let candidate = Candidate::start(lab, name, PORT, hello);
            let target = Target { address: candidate.address(PORT), hello };
            let [user, kernel] = measure(lab, &candidate, target);
            served.lock().unwrap().clear();
            println!(
                "idle flows: {name:<14} {user:>7.0} bytes of process, {kernel:>7.0} of kernel"
            );
            json!({ "candidate": name, "user": user, "kernel": kernel })
        };
        let all = candidates.iter().map(one).collect();
        over.store(true, Ordering::Relaxed);
        // The back end's accept returns.
        let target = Target { address: ([127, 0, 0, 1], PORT).into(), hello };
        let last = lab.in_backends(|| send_request(target, b'i'));
        drop(last);
        all
    });
    json!({ "flows": FLOWS, "results": all })
}

/// Bytes per flow in the process and in the kernel.
fn measure(lab: &Lab, candidate: &Candidate, target: Target<'_>) -> [f64; 2] {
    let memory = || [candidate.pid().map_or(0, resident_bytes), kernel_memory()];
    // The first flows make the process allocate arenas and tables, which later flows use too.
    let first = lab.in_client(|| open_idle_flows(target, WARM_UP_FLOWS));
    let before = memory();
    let rest = lab.in_client(|| open_idle_flows(target, FLOWS));
    let after = memory();
    drop((first, rest));
    [0, 1].map(|kind| (after[kind] as f64 - before[kind] as f64) / FLOWS as f64)
}

/// Opens flows from the calling thread's namespace, each with one response.
fn open_idle_flows(target: Target<'_>, flows: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = send_request(target, b'i').unwrap();
        stream.read_exact(&mut [0; SMALL_MESSAGE_LEN]).unwrap();
        stream
    };
    (0..flows).map(connect).collect()
}

/// Answers each connection. Keeps those of idle flows open.
fn serve(
    listener: &TcpListener,
    hello_len: usize,
    open_streams: &Mutex<Vec<TcpStream>>,
    over: &AtomicBool,
) {
    let mut first = vec![0; hello_len + 9];
    while !over.load(Ordering::Relaxed) {
        let (mut stream, _) = listener.accept().unwrap();
        if stream
            .read_exact(&mut first)
            .and_then(|()| stream.write_all(&[0; SMALL_MESSAGE_LEN]))
            .is_ok()
            && first[hello_len] == b'i'
        {
            open_streams.lock().unwrap().push(stream);
        }
    }
}

/// Resident memory of a process and its children, in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let resident = |pid: u32| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.unwrap_or_default() * rustix::param::page_size() as u64
    };
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    resident(pid) + children.map(resident).sum::<u64>()
}

/// Memory of kernel objects in bytes: `Slab` and `Percpu` of /proc/meminfo.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or_default()
    };
    (bytes("Slab:") + bytes("Percpu:")) * 1024
}
