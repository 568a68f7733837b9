//! Real TLS sessions, 1.2 and 1.3, whose packets are translated over bad lines. `SNISPLIT_STORM` is how
//! many; CI runs a few.

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
use snisplit_tests::capture::{Capture, Side};
use snisplit_tests::impair::Impairment;
use snisplit_tests::kernel::{count, is_since};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::speech::speech;
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::tls;
use snisplit_tests::wait::{pass, patience, until};

/// Clients at once.
const AT_ONCE: usize = 32;
/// How much longer than usual nothing may come. A peer whose SYN-ACK was late by a second
/// (`TCP_TIMEOUT_INIT`) repeats after two or three seconds, then after twice that, and so on: 30 s may pass
/// if four of these are lost.
const TIMES: u32 = 6;
/// Bytes of a speech, at most.
const MOST: u64 = 60_000;

fn sessions() -> usize {
    let many = std::env::var("SNISPLIT_STORM").ok().and_then(|text| text.parse().ok());
    many.unwrap_or(60)
}

/// Says a number and a speech, ends, and hears the answer to the last byte.
fn visit(lab: &Lab, seed: u64) {
    let version = if seed.is_multiple_of(2) { &TLS12 } else { &TLS13 };
    let mut session = tls::client_of(&[version], "a.test", &[]);
    let mut stream = connect(lab, agent::address());
    stream.set_read_timeout(Some(patience() * TIMES)).unwrap();
    let mut tls = Stream::new(&mut session, &mut stream);
    tls.write_all(&seed.to_be_bytes()).unwrap();
    tls.write_all(&speech(seed, 0, MOST)).unwrap();
    tls.conn.send_close_notify();
    while tls.conn.wants_write() {
        tls.conn.write_tls(&mut tls.sock).unwrap();
    }
    tls.sock.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    tls.read_to_end(&mut heard).unwrap();
    assert!(heard == speech(seed, 1, MOST), "session {seed}: {} bytes heard", heard.len());
}

fn answer(mut stream: TcpStream, config: &Arc<ServerConfig>) {
    let mut session = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut tls = Stream::new(&mut session, &mut stream);
    let mut heard = Vec::new();
    tls.read_to_end(&mut heard).unwrap();
    let (seed, said) = heard.split_first_chunk().unwrap();
    let seed = u64::from_be_bytes(*seed);
    assert!(said == speech(seed, 0, MOST), "session {seed}: {} bytes heard", said.len());
    tls.write_all(&speech(seed, 1, MOST)).unwrap();
    tls.conn.send_close_notify();
    while tls.conn.wants_write() {
        tls.conn.write_tls(&mut tls.sock).unwrap();
    }
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            pass(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(patience() * TIMES)).unwrap();
        answer(stream, config);
    }
}

fn storm(percent: u64, xdp: bool) {
    let lab = Lab::impaired(Impairment::of_loss(percent));
    let patient = ["--hello-timeout", "20s", "--dial-timeout", "20s"];
    let config = lab.folder().join("snisplit.toml");
    fs::write(&config, format!("[packet]\nxdp = {xdp}\n")).unwrap();
    let told = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001", "--config"];
    let config = [config.to_str().unwrap()];
    let agent = Agent::start(&lab, &[&told[..], &config, &patient].concat());
    let (listener, config) = (listen(&lab, backend(8001)), tls::server("a.test"));
    listener.set_nonblocking(true).unwrap();
    let captures = [Side::Client, Side::Backends].map(|side| Capture::start(&lab, side, "in"));
    let (next, over, all) = (AtomicUsize::new(0), AtomicBool::new(false), sessions());
    thread::scope(|scope| {
        let servers: Vec<_> =
            (0..AT_ONCE + 8).map(|_| scope.spawn(|| serve(&listener, &config, &over))).collect();
        let visits = || {
            while let seed @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                && seed < all
            {
                visit(&lab, seed as u64);
            }
        };
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(visits)).collect();
        let clients: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        let servers = servers.into_iter().map(thread::ScopedJoinHandle::join);
        assert_eq!(clients.into_iter().chain(servers).filter(Result::is_err).count(), 0);
    });
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    until("all to be closed", || (agent.metric(&lab, closed) == all as f64).then_some(()));
    let engines: Vec<String> = (0..all).map(|_| agent.record()["engine"].to_string()).collect();
    let stayed = engines.iter().filter(|engine| *engine != "\"packet\"").count();
    eprintln!("{percent} %, xdp {xdp}: {all} sessions, {stayed} stayed with their sockets");
    lab.fates().for_each(|fates| eprintln!("{fates}"));
    assert!(stayed <= all / 10, "{stayed} stayed with their sockets");
    inspect(&lab, captures, (all, stayed));
}

/// All that arrives at a peer has its sums, and resets are the other peer's: what is late, of flows that
/// have ended, is answered with one, by a host that has their sockets.
fn inspect(lab: &Lab, captures: [Capture; 2], (all, stayed): (usize, usize)) {
    let [client, proxy, backends] =
        lab.names().map(|name| lab.inside(name, || count("snmp", "Tcp", "OutRsts")) as usize);
    assert!(proxy <= 3 * stayed, "{proxy} resets by the host between");
    for (capture, others) in captures.into_iter().zip([backends, client]) {
        let (packets, resets) = capture.summed(lab);
        eprintln!("{packets} packets, {resets} resets, {others} by the other peer");
        // Some are doubled on the way.
        assert!(packets > all && resets <= 2 * (others + proxy), "{resets} resets");
    }
}

#[test]
fn every_byte_of_real_sessions_over_bad_lines() {
    storm(1, false);
    storm(4, false);
    // Older kernels do not say what a driver can.
    storm(4, is_since(6, 3));
}
