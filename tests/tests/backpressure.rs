//! Readers that do not read: the sender is throttled, and what waits in between stays small.

//@ engines: named

use std::time::Duration;
use std::{fs, thread};

use snisplit_tests::flow::{ENGINES, Flow};
use snisplit_tests::kernel::{socket_memory, sockmap_flow_entries};
use snisplit_tests::stream::{RandomStream, read_all, read_all_hashed, shutdown_write, write};
use snisplit_tests::wait::{sleep_for, wait_until};

/// Bytes of a socket's receive buffer, at most 6 MiB, as is Linux's default: it may grow to that if nobody reads
/// behind the agent, and some hosts allow more.
const TCP_RMEM: &str = "4096 131072 6291456";

#[test]
fn a_slow_reader_throttles_the_sender() {
    for engine in ENGINES {
        let flow = Flow::open(engine);
        let Flow { client, backend, agent, .. } = &flow;
        flow.lab().in_proxy(|| fs::write("/proc/sys/net/ipv4/tcp_rmem", TCP_RMEM)).unwrap();
        let at_rest = agent.resident_bytes();
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let hash = RandomStream::default().send(backend, 64_000_000);
                shutdown_write(backend);
                hash
            });
            // Nobody reads: the sender must come to a halt with most of it unsent.
            let (mut last, mut most) = (u64::MAX, 0);
            wait_until("the sender to be throttled", || {
                sleep_for(Duration::from_millis(200));
                let held =
                    socket_memory(flow.lab()) + agent.resident_bytes().saturating_sub(at_rest);
                most = most.max(held);
                std::mem::replace(&mut last, held).eq(&held).then_some(())
            });
            assert!(!sending.is_finished(), "64 MB must not fit into the queues");
            // TCP's own buffers may take 6 MiB and 4 (tcp_wmem), of which a sockmap socket never needs so much.
            let limit = if flow.engine == "sockmap" { 8 } else { 12 };
            assert!(most < limit << 20, "{most} bytes in the agent and its sockets");
            let got = read_all_hashed(client);
            shutdown_write(client);
            assert_eq!(got, (64_000_000, sending.join().unwrap()));
        });
        flow.assert_record(0, 64_000_000, "closed");
    }
}

/// A byte in a packet of its own takes a thousand in the kernel: what waits there is counted in
/// memory, not in bytes.
#[test]
fn queued_single_bytes_are_limited_by_memory() {
    let flow = Flow::open("sockmap");
    let Flow { client, backend, .. } = &flow;
    // Nobody reads: first TCP's own buffers fill up.
    let (many, single) = (900_000, 300_000);
    write(client, &vec![0; many]);
    (0..single).for_each(|_| write(client, b"x"));
    let directions = sockmap_flow_entries(flow.lab().namespace_names()[1]);
    let up = directions.iter().find(|flow| flow["direction"] == "Up").unwrap();
    let redirected = up["redirected_bytes"].as_u64().unwrap() as usize;
    assert!(redirected < flow.hello_len + many + single / 10, "{up}");
    shutdown_write(client);
    assert_eq!(read_all(backend).len(), many + single);
    shutdown_write(backend);
    assert_eq!(read_all(client), b"");
    flow.assert_record(many + single, 0, "closed");
}

/// Uploads faster than their reader: the kernel gives each to user space in the middle of it, where a
/// buffer could meet a program that is just being taken away. `SNISPLIT_STRESS` is how many.
#[test]
fn bulk_is_intact_when_sockmap_detaches() {
    const AT_ONCE: usize = 8;
    let many = std::env::var("SNISPLIT_STRESS").ok().and_then(|text| text.parse().ok());
    let first = Flow::open("sockmap");
    for _ in 0..many.unwrap_or(64) / AT_ONCE {
        let flows: Vec<_> = (0..AT_ONCE).map(|_| first.connect_another()).collect();
        thread::scope(|scope| {
            for (client, backend) in &flows {
                shutdown_write(backend);
                let sending = scope.spawn(move || {
                    let hash = RandomStream::default().send(client, 8_000_000);
                    shutdown_write(client);
                    hash
                });
                scope.spawn(move || {
                    assert_eq!(read_all_hashed(backend), (8_000_000, sending.join().unwrap()));
                });
            }
        });
        for _ in 0..AT_ONCE {
            first.assert_record(8_000_000, 0, "closed");
        }
    }
}
