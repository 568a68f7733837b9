//! Readers that do not read: the sender is throttled, and what waits in between stays small.

use std::time::Duration;
use std::{fs, thread};

use snisplit_tests::flow::{ENGINES, Flow};
use snisplit_tests::kernel::{flows, socket_memory};
use snisplit_tests::stream::{Noise, finish, hash_all, read_all, write};
use snisplit_tests::wait::{pass, until};

/// Bytes of a socket's receive buffer, at most 6 MiB, as is Linux's default: it may grow to that if nobody reads
/// behind the agent, and some hosts allow more.
const RECEIVED: &str = "4096 131072 6291456";

#[test]
fn a_slow_reader_throttles_the_sender() {
    for engine in ENGINES {
        let flow = Flow::open(engine);
        let Flow { client, backend, agent, .. } = &flow;
        flow.lab().proxy(|| fs::write("/proc/sys/net/ipv4/tcp_rmem", RECEIVED)).unwrap();
        let at_rest = agent.resident();
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let hash = Noise::default().send(backend, 64_000_000);
                finish(backend);
                hash
            });
            // Nobody reads: the sender must come to a halt with most of it unsent.
            let (mut last, mut most) = (u64::MAX, 0);
            until("the sender to be throttled", || {
                pass(Duration::from_millis(200));
                let held = socket_memory(flow.lab()) + agent.resident().saturating_sub(at_rest);
                most = most.max(held);
                std::mem::replace(&mut last, held).eq(&held).then_some(())
            });
            assert!(!sending.is_finished(), "64 MB must not fit into the queues");
            // TCP's own buffers may take 6 MiB and 4 (tcp_wmem), of which a sockmap socket never needs so much.
            let limit = if flow.engine == "sockmap" { 8 } else { 12 };
            assert!(most < limit << 20, "{most} bytes in the agent and its sockets");
            let got = hash_all(client);
            finish(client);
            assert_eq!(got, (64_000_000, sending.join().unwrap()));
        });
        flow.ends(0, 64_000_000, "closed");
    }
}

/// A byte in a packet of its own takes a thousand in the kernel: what waits there is counted in
/// memory, not in bytes.
#[test]
fn single_bytes_do_not_fill_the_kernel() {
    let flow = Flow::open("sockmap");
    let Flow { client, backend, .. } = &flow;
    // Nobody reads: first TCP's own buffers fill up.
    let (many, single) = (900_000, 300_000);
    write(client, &vec![0; many]);
    (0..single).for_each(|_| write(client, b"x"));
    let directions = flows(flow.lab().names()[1]);
    let up = directions.iter().find(|flow| flow["direction"] == "Up").unwrap();
    let redirected = up["redirected_bytes"].as_u64().unwrap() as usize;
    assert!(redirected < flow.hello + many + single / 10, "{up}");
    finish(client);
    assert_eq!(read_all(backend).len(), many + single);
    finish(backend);
    assert_eq!(read_all(client), b"");
    flow.ends(many + single, 0, "closed");
}

/// Uploads faster than their reader: the kernel gives each to user space in the middle of it, where a
/// buffer could meet a program that is just being taken away. `SNISPLIT_STORM` is how many.
#[test]
fn bulk_is_whole_where_the_kernel_gives_it_up() {
    const AT_ONCE: usize = 8;
    let many = std::env::var("SNISPLIT_STORM").ok().and_then(|text| text.parse().ok());
    let first = Flow::open("sockmap");
    for _ in 0..many.unwrap_or(64) / AT_ONCE {
        let flows: Vec<_> = (0..AT_ONCE).map(|_| first.another()).collect();
        thread::scope(|scope| {
            for (client, backend) in &flows {
                finish(backend);
                let sending = scope.spawn(move || {
                    let hash = Noise::default().send(client, 8_000_000);
                    finish(client);
                    hash
                });
                scope.spawn(move || {
                    assert_eq!(hash_all(backend), (8_000_000, sending.join().unwrap()));
                });
            }
        });
        for _ in 0..AT_ONCE {
            first.ends(8_000_000, 0, "closed");
        }
    }
}
