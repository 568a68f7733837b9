//! What flows cost that have said something and now say nothing: memory of the process and of the
//! kernel.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use snisplit_tests::lab::Lab;

use crate::candidate::Candidate;
use crate::load::{SMALL_MESSAGE_LEN, send_request};

/// As many as 20,000 descriptors, the hard limit of many a machine, leave room for.
const FLOWS: usize = 8_000;
const WARM_UP_FLOWS: usize = 400;
const PORT: u16 = 8002;

/// Bytes for each flow, by candidate.
pub(crate) fn run(lab: &Lab, hello: &[u8], candidates: &[&str]) -> Value {
    let listener = crate::listen(lab, PORT);
    let (served, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let all: Vec<Value> = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, hello.len(), &served, &over));
        let one = |name: &&str| {
            let candidate = Candidate::start(lab, name, PORT, hello);
            let [user, kernel] = measure(lab, &candidate, hello);
            served.lock().unwrap().clear();
            println!(
                "idle flows: {name:<14} {user:>7.0} bytes of process, {kernel:>7.0} of kernel"
            );
            json!({ "candidate": name, "user": user, "kernel": kernel })
        };
        let all = candidates.iter().map(one).collect();
        over.store(true, Ordering::Relaxed);
        // Lets accept return.
        let last = lab.in_backends(|| send_request(([127, 0, 0, 1], PORT).into(), hello, b'i'));
        drop(last);
        all
    });
    json!({ "flows": FLOWS, "results": all })
}

fn measure(lab: &Lab, candidate: &Candidate, hello: &[u8]) -> [f64; 2] {
    let memory = || [candidate.pid().map_or(0, resident_bytes), kernel_memory()];
    let to = candidate.address(PORT);
    // What the first ones need (arenas, tables) belongs to none of them.
    let first = lab.in_client(|| open_idle_flows(to, hello, WARM_UP_FLOWS));
    let before = memory();
    let rest = lab.in_client(|| open_idle_flows(to, hello, FLOWS));
    let after = memory();
    drop((first, rest));
    [0, 1].map(|kind| (after[kind] as f64 - before[kind] as f64) / FLOWS as f64)
}

/// In the client's namespace.
fn open_idle_flows(to: SocketAddr, hello: &[u8], flows: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = send_request(to, hello, b'i').unwrap();
        stream.read_exact(&mut [0; SMALL_MESSAGE_LEN]).unwrap();
        stream
    };
    (0..flows).map(connect).collect()
}

/// Answers, and keeps the connection where the client does.
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

/// Bytes of memory that a process and its children hold.
fn resident_bytes(pid: u32) -> u64 {
    let of = |pid: u32| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.unwrap_or_default() * rustix::param::page_size() as u64
    };
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    of(pid) + children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(of).sum::<u64>()
}

/// Bytes of memory that the kernel keeps its own things in: `Slab` and `Percpu` of /proc/meminfo.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or_default()
    };
    (of("Slab:") + of("Percpu:")) * 1024
}
