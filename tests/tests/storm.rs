//! Many short flows at once that do what one seldom does: random cuts, pauses, single bytes, ends in
//! any order. Every byte is checked at both ends. `SNISPLIT_STORM` is how many; CI runs a few.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::ENGINES;
use snisplit_tests::hello::Hello;
use snisplit_tests::kernel::counter;
use snisplit_tests::lab::{Lab, PROXY6, backend, has_ipv6};
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::wait::{pass, until};

/// Clients at once.
const AT_ONCE: usize = 24;
/// Bytes of a direction, at most.
const BYTES: u64 = 150_000;

/// xorshift64*: what a seed means is the same at both ends.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
    }

    fn of(seed: u64, side: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (side + 1) << 40 | 1)
    }
}

/// What one side says: always the same for a seed.
fn speech(seed: u64, side: u64) -> Vec<u8> {
    let mut dice = Dice::of(seed, side);
    let len = match dice.roll(4) {
        0 => dice.roll(40),
        _ => dice.roll(BYTES),
    };
    (0..len).map(|_| dice.roll(256) as u8).collect()
}

/// Says it in pieces, and ends the direction.
fn say(mut stream: &TcpStream, seed: u64, side: u64) {
    let speech = speech(seed, side);
    let mut dice = Dice::of(seed, side + 2);
    let mut rest = &speech[..];
    while !rest.is_empty() {
        let most = [1, 3, 200, 5_000, 60_000][dice.roll(5) as usize];
        let (piece, after) = rest.split_at((1 + dice.roll(most) as usize).min(rest.len()));
        stream.write_all(piece).unwrap();
        rest = after;
        if dice.roll(12) == 0 {
            pass(Duration::from_millis(dice.roll(5)));
        }
    }
    if dice.roll(3) == 0 {
        pass(Duration::from_millis(dice.roll(20)));
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Hears all of it, sometimes slowly.
fn hear(mut stream: &TcpStream, seed: u64, side: u64) {
    let mut dice = Dice::of(seed, side + 4);
    let mut heard: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 1 + dice.roll(30_000) as usize];
    loop {
        let bytes = stream.read(&mut buffer).unwrap();
        if bytes == 0 {
            break;
        }
        heard.extend(&buffer[..bytes]);
        if dice.roll(40) == 0 {
            pass(Duration::from_millis(dice.roll(8)));
        }
    }
    assert!(heard == speech(seed, side), "seed {seed}: {} bytes heard", heard.len());
}

fn converse(stream: &TcpStream, seed: u64, side: u64) {
    thread::scope(|scope| {
        scope.spawn(|| say(stream, seed, side));
        hear(stream, seed, 1 - side);
    });
}

fn serve(listener: &TcpListener, hello: usize, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            pass(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut first = vec![0; hello + 8];
        stream.read_exact(&mut first).unwrap();
        let seed = u64::from_be_bytes(first[hello..].try_into().unwrap());
        // Like a ServerHello: nobody ends before it, so every flow is handed over alive.
        stream.write_all(b"!").unwrap();
        converse(&stream, seed, 1);
    }
}

/// Where clients come in, the way on, and who listens there: IPv4 and IPv6 mixed, if there is any.
fn ways(lab: &Lab) -> (Vec<SocketAddr>, &'static str, TcpListener) {
    let entrances = vec![agent::address()];
    if !has_ipv6() {
        return (entrances, "a.test=10.91.2.2:8001", listen(lab, backend(8001)));
    }
    let six = SocketAddr::new(PROXY6.into(), agent::PORT);
    let listener = listen(lab, (Ipv6Addr::UNSPECIFIED, 8001).into());
    ([entrances, vec![six]].concat(), "a.test=10.91.2.2:8001,[fd91:2::2]:8001", listener)
}

fn storm(engine: &'static str, flows: usize, loss: u32) {
    let lab = Lab::new();
    if loss > 0 {
        lab.impair(loss);
    }
    let instance = format!("sp-storm-{loss}");
    let (entrances, route, listener) = ways(&lab);
    let agent =
        Agent::start(&lab, &["--engine", engine, "--route", route, "--instance", &instance]);
    listener.set_nonblocking(true).unwrap();
    let hello = Hello::new().sni(b"a.test").bytes();
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let servers: Vec<_> = (0..AT_ONCE + 4)
            .map(|_| scope.spawn(|| serve(&listener, hello.len(), &over)))
            .collect();
        let clients: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    while let seed @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                        && seed < flows
                    {
                        let mut stream = connect(&lab, entrances[seed % entrances.len()]);
                        let seed = seed as u64 + 1;
                        stream.write_all(&[&hello[..], &seed.to_be_bytes()].concat()).unwrap();
                        stream.read_exact(&mut [0; 1]).unwrap();
                        converse(&stream, seed, 0);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        let ended =
            ended.into_iter().chain(servers.into_iter().map(thread::ScopedJoinHandle::join));
        assert!(ended.into_iter().all(|one| one.is_ok()), "{engine}");
    });
    inspect(&lab, &agent, (engine, &instance), (flows, loss));
}

/// All ended in order, by the engine that was asked for, without a doubt and without a leak.
fn inspect(
    lab: &Lab,
    agent: &Agent,
    (engine, instance): (&str, &str),
    (flows, loss): (usize, u32),
) {
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    until("all to be closed", || (agent.metric(lab, closed) == flows as f64).then_some(()));
    let labels = "engine=\"sockmap\",reason=\"half_closed\"";
    let declined = agent.metric(lab, &format!("snisplit_engine_declined_total{{{labels}}}"));
    assert!(declined == 0.0, "{declined} flows were not carried by what they should");
    assert!(agent.descriptors("socket:") < 20, "no socket is left");
    if engine == "sockmap" {
        let [trimmed, doubtful, unreadable] = [5, 6, 7].map(|slot| counter(instance, slot));
        eprintln!("{flows} flows, {loss} % lost: {trimmed} buffers were trimmed");
        assert_eq!((doubtful, unreadable), (0, 0), "no flow was in doubt");
    }
}

#[test]
fn every_byte_of_many_odd_flows() {
    let flows = std::env::var("SNISPLIT_STORM").ok().and_then(|text| text.parse().ok());
    for engine in ENGINES {
        storm(engine, flows.unwrap_or(400), 0);
    }
}

/// Retransmissions that overlap what has been forwarded are what a sockmap forwards twice.
#[test]
fn every_byte_over_links_that_lose_and_double_packets() {
    let flows = std::env::var("SNISPLIT_STORM").ok().and_then(|text| text.parse().ok());
    for loss in [1, 4] {
        storm("sockmap", flows.unwrap_or(60), loss);
    }
}
