//! Peers that do not read: the agent throttles the sender and buffers little.

//@ engines: named

use std::time::Duration;
use std::{fs, thread};

use snisplit_tests::flow::{ENGINES, Flow};
use snisplit_tests::kernel::{socket_memory, sockmap_flow_entries};
use snisplit_tests::stream::{RandomStream, read_all, read_all_hashed, shutdown_write, write};
use snisplit_tests::testbed::Peers;
use snisplit_tests::wait::{sleep_for, wait_until};

/// Receive buffer sizes of a socket in bytes: minimum, default and maximum. These are Linux's own defaults; some hosts
/// allow more.
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
            // The client does not read, so the sender has to stop with most bytes unsent.
            let (mut last, mut most) = (u64::MAX, 0);
            wait_until("the sender to be throttled", || {
                sleep_for(Duration::from_millis(200));
                let held =
                    socket_memory(flow.lab()) + agent.resident_bytes().saturating_sub(at_rest);
                most = most.max(held);
                std::mem::replace(&mut last, held).eq(&held).then_some(())
            });
            assert!(!sending.is_finished(), "64 MB do not fit into the buffers");
            // TCP may use 6 MiB to receive and 4 MiB to send (tcp_wmem). A socket of a sockmap needs less.
            let limit = if flow.engine == "sockmap" { 8 } else { 12 };
            assert!(most < limit << 20, "{most} bytes in the agent and in its sockets");
            let got = read_all_hashed(client);
            shutdown_write(client);
            assert_eq!(got, (64_000_000, sending.join().unwrap()));
        });
        flow.assert_record(0, 64_000_000, "closed");
    }
}

/// A byte in a packet of its own takes some 1,000 bytes of kernel memory. The limit of the queue is in bytes of memory.
#[test]
fn queued_single_bytes_are_limited_by_memory() {
    let flow = Flow::open("sockmap");
    let Flow { client, backend, .. } = &flow;
    // The back end does not read. TCP's buffers fill up first.
    let (many, single) = (900_000, 300_000);
    write(client, &vec![0; many]);
    (0..single).for_each(|_| write(client, b"x"));
    let directions = sockmap_flow_entries(flow.agent.instance());
    let up = directions.iter().find(|flow| flow["direction"] == "Up").unwrap();
    let redirected = up["redirected_bytes"].as_u64().unwrap() as usize;
    assert!(redirected < flow.hello_len + many + single / 10, "{up}");
    shutdown_write(client);
    assert_eq!(read_all(backend).len(), many + single);
    shutdown_write(backend);
    assert_eq!(read_all(client), b"");
    flow.assert_record(many + single, 0, "closed");
}

/// Uploads that are faster than their receiver: each direction detaches in the middle, when a buffer could meet a
/// program that is being removed. `SNISPLIT_STRESS` is the number of flows.
#[test]
fn bulk_is_intact_when_sockmap_detaches() {
    const CONCURRENT_FLOWS: usize = 8;
    let count = std::env::var("SNISPLIT_STRESS").ok().and_then(|text| text.parse().ok());
    let first = Flow::open("sockmap");
    for _ in 0..count.unwrap_or(64) / CONCURRENT_FLOWS {
        let flows: Vec<_> = (0..CONCURRENT_FLOWS).map(|_| first.connect_another()).collect();
        thread::scope(|scope| {
            for Peers { client, backend } in &flows {
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
        for _ in 0..CONCURRENT_FLOWS {
            first.assert_record(8_000_000, 0, "closed");
        }
    }
}
