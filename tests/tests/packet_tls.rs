//! TLS 1.2 and 1.3 sessions over impaired links, on the packet engine. `SNISPLIT_STRESS` is the number of sessions.

//@ engines: named

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection, Stream};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::capture::{Capture, CapturePoint};
use snisplit_tests::concurrent_load::ConcurrentLoad;
use snisplit_tests::impaired_link::Impairment;
use snisplit_tests::kernel::{PacketCounter, kernel_at_least, proc_net_counter};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::tls;
use snisplit_tests::traffic::payload;
use snisplit_tests::wait::{default_timeout, wait_until};

/// Clients at the same time.
const CONCURRENT_CLIENTS: usize = 32;
/// Factor for the timeout of reads. A peer whose SYN-ACK was late by a second (`TCP_TIMEOUT_INIT`) retransmits after two or
/// three seconds, and then after twice the time. 30 s pass if four retransmissions are lost.
const TIMEOUT_FACTOR: u32 = 6;
/// Largest payload of a direction, in bytes.
const MAX_PAYLOAD: u64 = 60_000;

fn session_count() -> usize {
    let count = std::env::var("SNISPLIT_STRESS").ok().and_then(|text| text.parse().ok());
    count.unwrap_or(60)
}

/// Sends the seed and a payload, ends its direction, and verifies the response.
fn run_client(lab: &Lab, seed: u64) {
    let version = if seed.is_multiple_of(2) { &TLS12 } else { &TLS13 };
    let mut session = tls::client_with_versions(&[version], "a.test", &[]);
    let mut stream = connect(lab, agent::address());
    stream.set_read_timeout(Some(default_timeout() * TIMEOUT_FACTOR)).unwrap();
    let mut tls = Stream::new(&mut session, &mut stream);
    tls.write_all(&seed.to_be_bytes()).unwrap();
    tls.write_all(&payload(seed, 0, MAX_PAYLOAD)).unwrap();
    tls.conn.send_close_notify();
    while tls.conn.wants_write() {
        tls.conn.write_tls(&mut tls.sock).unwrap();
    }
    tls.sock.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    tls.read_to_end(&mut received).unwrap();
    assert!(
        received == payload(seed, 1, MAX_PAYLOAD),
        "session {seed}: {} bytes received",
        received.len()
    );
}

fn serve_session(mut stream: TcpStream, config: &Arc<ServerConfig>) {
    let mut session = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut tls = Stream::new(&mut session, &mut stream);
    let mut received = Vec::new();
    tls.read_to_end(&mut received).unwrap();
    let (seed, rest) = received.split_first_chunk().unwrap();
    let seed = u64::from_be_bytes(*seed);
    assert!(rest == payload(seed, 0, MAX_PAYLOAD), "session {seed}: {} bytes received", rest.len());
    tls.write_all(&payload(seed, 1, MAX_PAYLOAD)).unwrap();
    tls.conn.send_close_notify();
    while tls.conn.wants_write() {
        tls.conn.write_tls(&mut tls.sock).unwrap();
    }
}

fn run_sessions(loss_percent: u64, xdp: bool) {
    let lab = Lab::impaired(Impairment::lossy(loss_percent));
    let long_timeouts = ["--client-hello-timeout", "20s", "--connect-timeout", "20s"];
    let config = lab.dir().join("snisplit.toml");
    fs::write(&config, format!("[packet]\nxdp = {xdp}\n")).unwrap();
    let args = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001", "--config"];
    let config = [config.to_str().unwrap()];
    let agent = Agent::start(&lab, &[&args[..], &config, &long_timeouts].concat());
    let (listener, config) = (listen(&lab, backend(8001)), tls::self_signed_server("a.test"));
    let captures =
        [CapturePoint::Client, CapturePoint::Backends].map(|side| Capture::start(&lab, side, "in"));
    let all = session_count();
    let load = ConcurrentLoad {
        listener: &listener,
        clients: CONCURRENT_CLIENTS,
        flows: all,
        read_timeout: default_timeout() * TIMEOUT_FACTOR,
    };
    let failed =
        load.run(|seed| run_client(&lab, seed as u64), |stream| serve_session(stream, &config));
    assert_eq!(failed, 0, "threads of clients and servers that failed");
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    wait_until("all to be closed", || (agent.metric(&lab, closed) == all as f64).then_some(()));
    let engines: Vec<String> =
        (0..all).map(|_| agent.next_record()["engine"].to_string()).collect();
    let not_offloaded = engines.iter().filter(|engine| *engine != "\"packet\"").count();
    eprintln!("{loss_percent} %, xdp {xdp}: {all} sessions, {not_offloaded} not offloaded");
    lab.link_stats().for_each(|stats| eprintln!("{stats}"));
    assert!(not_offloaded <= all / 10, "{not_offloaded} sessions were not offloaded");
    assert_eq!(agent.packet_counter(PacketCounter::XdpForwarded) > 0, xdp);
    check_captures(&lab, captures, all, not_offloaded);
}

/// Every packet that arrives at a peer has right checksums. A reset is the other peer's: a host that has sockets answers a
/// late packet of an ended connection with one.
fn check_captures(lab: &Lab, captures: [Capture; 2], sessions: usize, not_offloaded: usize) {
    let [client, proxy, backends] = lab
        .namespace_names()
        .map(|name| lab.in_namespace(name, || proc_net_counter("snmp", "Tcp", "OutRsts")) as usize);
    assert!(proxy <= 3 * not_offloaded, "{proxy} resets by the proxy's host");
    for (capture, others) in captures.into_iter().zip([backends, client]) {
        let (packets, resets) = capture.packets_and_resets(lab);
        eprintln!("{packets} packets, {resets} resets, {others} by the other peer");
        // The links duplicate some packets.
        assert!(packets > sessions && resets <= 2 * (others + proxy), "{resets} resets");
    }
}

#[test]
fn tls_sessions_over_impaired_links_are_intact() {
    run_sessions(1, false);
    run_sessions(4, false);
    // Older kernels do not report the XDP features of a driver.
    run_sessions(4, kernel_at_least(6, 3));
}
