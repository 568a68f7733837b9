//! Real TLS sessions, 1.2 and 1.3, whose packets are translated over bad lines. `SNISPLIT_STRESS` is how
//! many; CI runs a few.

//@ engines: named

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection, Stream};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::capture::{Capture, CapturePoint};
use snisplit_tests::impaired_link::Impairment;
use snisplit_tests::kernel::{kernel_at_least, proc_net_counter};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::tls;
use snisplit_tests::traffic::payload;
use snisplit_tests::wait::{default_timeout, sleep_for, wait_until};

/// Clients at once.
const CONCURRENT_CLIENTS: usize = 32;
/// How much longer than usual nothing may come. A peer whose SYN-ACK was late by a second
/// (`TCP_TIMEOUT_INIT`) repeats after two or three seconds, then after twice that, and so on: 30 s may pass
/// if four of these are lost.
const TIMEOUT_FACTOR: u32 = 6;
/// Bytes of a speech, at most.
const MAX_PAYLOAD: u64 = 60_000;

fn session_count() -> usize {
    let many = std::env::var("SNISPLIT_STRESS").ok().and_then(|text| text.parse().ok());
    many.unwrap_or(60)
}

/// Says a number and a speech, ends, and hears the answer to the last byte.
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
    let (seed, said) = received.split_first_chunk().unwrap();
    let seed = u64::from_be_bytes(*seed);
    assert!(said == payload(seed, 0, MAX_PAYLOAD), "session {seed}: {} bytes received", said.len());
    tls.write_all(&payload(seed, 1, MAX_PAYLOAD)).unwrap();
    tls.conn.send_close_notify();
    while tls.conn.wants_write() {
        tls.conn.write_tls(&mut tls.sock).unwrap();
    }
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            sleep_for(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(default_timeout() * TIMEOUT_FACTOR)).unwrap();
        serve_session(stream, config);
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
    listener.set_nonblocking(true).unwrap();
    let captures =
        [CapturePoint::Client, CapturePoint::Backends].map(|side| Capture::start(&lab, side, "in"));
    let (next, over, all) = (AtomicUsize::new(0), AtomicBool::new(false), session_count());
    thread::scope(|scope| {
        let servers: Vec<_> = (0..CONCURRENT_CLIENTS + 8)
            .map(|_| scope.spawn(|| serve(&listener, &config, &over)))
            .collect();
        let run_clients = || {
            while let seed @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                && seed < all
            {
                run_client(&lab, seed as u64);
            }
        };
        let clients: Vec<_> = (0..CONCURRENT_CLIENTS).map(|_| scope.spawn(run_clients)).collect();
        let clients: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        let servers = servers.into_iter().map(thread::ScopedJoinHandle::join);
        assert_eq!(clients.into_iter().chain(servers).filter(Result::is_err).count(), 0);
    });
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    wait_until("all to be closed", || (agent.metric(&lab, closed) == all as f64).then_some(()));
    let engines: Vec<String> =
        (0..all).map(|_| agent.next_record()["engine"].to_string()).collect();
    let not_offloaded = engines.iter().filter(|engine| *engine != "\"packet\"").count();
    eprintln!(
        "{loss_percent} %, xdp {xdp}: {all} sessions, {not_offloaded} stayed with their sockets"
    );
    lab.link_stats().for_each(|fates| eprintln!("{fates}"));
    assert!(not_offloaded <= all / 10, "{not_offloaded} stayed with their sockets");
    check_captures(&lab, captures, (all, not_offloaded));
}

/// All that arrives at a peer has its sums, and resets are the other peer's: what is late, of flows that
/// have ended, is answered with one, by a host that has their sockets.
fn check_captures(lab: &Lab, captures: [Capture; 2], (all, stayed): (usize, usize)) {
    let [client, proxy, backends] = lab
        .namespace_names()
        .map(|name| lab.in_namespace(name, || proc_net_counter("snmp", "Tcp", "OutRsts")) as usize);
    assert!(proxy <= 3 * stayed, "{proxy} resets by the host between");
    for (capture, others) in captures.into_iter().zip([backends, client]) {
        let (packets, resets) = capture.packets_and_resets(lab);
        eprintln!("{packets} packets, {resets} resets, {others} by the other peer");
        // Some are doubled on the way.
        assert!(packets > all && resets <= 2 * (others + proxy), "{resets} resets");
    }
}

#[test]
fn tls_sessions_over_impaired_links_are_intact() {
    run_sessions(1, false);
    run_sessions(4, false);
    // Older kernels do not say what a driver can.
    run_sessions(4, kernel_at_least(6, 3));
}
