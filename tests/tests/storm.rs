//! Many short flows at once that do what one seldom does: random cuts, pauses, single bytes, ends in
//! any order. Every byte is checked at both ends. `SNISPLIT_STORM` is how many; CI runs a few.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::ENGINES;
use snisplit_tests::hello::Hello;
use snisplit_tests::impair::Impairment;
use snisplit_tests::kernel::{count, counter};
use snisplit_tests::lab::{Lab, PROXY6, backend};
use snisplit_tests::line::has_ipv6;
use snisplit_tests::skip;
use snisplit_tests::speech::{ALL_SIZES, BY_TURNS, Manner, SINGLE, SMALL, hear, say};
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::wait::{is_slow, pass, patience, until};

/// Clients at once.
const AT_ONCE: usize = 24;

/// A SYN that is lost three times is late by 7 s.
const PATIENT: [&str; 4] = ["--hello-timeout", "20s", "--dial-timeout", "20s"];

/// How much longer than usual nothing may come. A peer that begins with a retransmission timeout of seconds,
/// because its SYN-ACK was late, and loses what it repeats, is silent for half a minute now and then.
const TIMES: u32 = 6;

/// A kind of storm.
#[derive(Clone, Copy)]
struct Storm {
    engine: &'static str,
    flows: usize,
    /// What the lines lose, of a hundred; `None` is a good line.
    loss: Option<u64>,
    manner: Manner,
}

impl Storm {
    /// Clients at once. Over a bad line most of them wait.
    fn at_once(self) -> usize {
        match (self.engine, self.loss) {
            // Where the machine has time for each message, it stays one, and `auto` moves the flow. Of
            // many flows some move anyway.
            ("auto", Some(_)) if self.flows < 100 => AT_ONCE / 3,
            (_, Some(_)) => 3 * AT_ONCE,
            (_, None) => AT_ONCE,
        }
    }
}

fn converse(stream: &TcpStream, seed: u64, side: u64, manner: Manner) {
    thread::scope(|scope| {
        scope.spawn(|| say(stream, seed, side, manner));
        hear(stream, seed, 1 - side, manner.most);
    });
}

fn greet(mut stream: &TcpStream, hello: &[u8], seed: u64) {
    stream.write_all(&[hello, &seed.to_be_bytes()].concat()).unwrap();
    let mut word = [0];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(word, *b"!", "an alert: the flow was refused");
}

fn serve(listener: &TcpListener, hello: usize, manner: Manner, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            pass(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(patience() * TIMES)).unwrap();
        let mut first = vec![0; hello + 8];
        stream.read_exact(&mut first).unwrap();
        let seed = u64::from_be_bytes(first[hello..].try_into().unwrap());
        // Like a ServerHello: nobody ends before it, so every flow is handed over alive.
        stream.write_all(b"!").unwrap();
        converse(&stream, seed, 1, manner);
    }
}

/// Where clients come in and what they ask for, the ways on, and who listens there: IPv4 and IPv6 mixed,
/// if there is any. Packets of the one cannot become packets of the other.
fn ways(
    lab: &Lab,
    engine: &str,
) -> (Vec<(SocketAddr, &'static str)>, [&'static str; 2], TcpListener) {
    let four = (agent::address(), "a.test");
    if !has_ipv6() {
        let routes = ["a.test=10.91.2.2:8001", "b.test=10.91.2.2:8001"];
        return (vec![four], routes, listen(lab, backend(8001)));
    }
    let six = (SocketAddr::new(PROXY6.into(), agent::PORT), "b.test");
    let listener = listen(lab, (Ipv6Addr::UNSPECIFIED, 8001).into());
    let routes = match engine {
        "packet" => ["a.test=10.91.2.2:8001", "b.test=[fd91:2::2]:8001"],
        _ => ["a.test=10.91.2.2:8001,[fd91:2::2]:8001", "b.test=10.91.2.2:8001,[fd91:2::2]:8001"],
    };
    (vec![four, six], routes, listener)
}

fn storm(storm: Storm) {
    let Storm { engine, flows, loss, manner } = storm;
    let lab = match loss {
        Some(percent) => Lab::impaired(Impairment::of_loss(percent)),
        None => Lab::new(),
    };
    let (entrances, [a, b], listener) = ways(&lab, engine);
    let told = ["--engine", engine, "--route", a, "--route", b];
    let agent = Agent::start(&lab, &[&told[..], &PATIENT].concat());
    listener.set_nonblocking(true).unwrap();
    let hello = |name: &str| Hello::new().sni(name.as_bytes()).bytes();
    let length = hello("a.test").len();
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let servers: Vec<_> = (0..storm.at_once() + 4)
            .map(|_| scope.spawn(|| serve(&listener, length, manner, &over)))
            .collect();
        let clients: Vec<_> = (0..storm.at_once())
            .map(|_| {
                scope.spawn(|| {
                    while let seed @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                        && seed < flows
                    {
                        let (entrance, name) = entrances[seed % entrances.len()];
                        let stream = connect(&lab, entrance);
                        stream.set_read_timeout(Some(patience() * TIMES)).unwrap();
                        greet(&stream, &hello(name), seed as u64 + 1);
                        converse(&stream, seed as u64 + 1, 0, manner);
                    }
                })
            })
            .collect();
        let clients: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        let servers = servers.into_iter().map(thread::ScopedJoinHandle::join);
        let failed = clients.into_iter().chain(servers).filter(Result::is_err).count();
        assert!(failed == 0, "{engine}, not ended in order: {:#?}", odd_records(&agent));
    });
    inspect(&lab, &agent, storm);
}

/// What the agent says of flows that were not closed.
fn odd_records(agent: &Agent) -> Vec<Value> {
    let records = std::iter::from_fn(|| agent.record_within(Duration::from_secs(1)));
    records.filter(|record| record["outcome"] != "closed").collect()
}

/// All ended in order, by the engine that was asked for, without a doubt and without a leak.
fn inspect(lab: &Lab, agent: &Agent, Storm { engine, flows, loss, .. }: Storm) {
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    until("all to be closed", || (agent.metric(lab, closed) == flows as f64).then_some(()));
    let labels = "engine=\"sockmap\",reason=\"half_closed\"";
    let declined = agent.metric(lab, &format!("snisplit_engine_declined_total{{{labels}}}"));
    assert!(
        engine == "auto" || declined == 0.0,
        "{declined} flows were not carried as they should"
    );
    assert!(agent.descriptors("socket:") < 20, "no socket is left");
    if ["sockmap", "auto"].contains(&engine) {
        let instance = lab.names()[1];
        let [trimmed, doubtful, unreadable] = [5, 6, 7].map(|slot| counter(instance, slot));
        let moved = agent.metric(lab, "snisplit_engine_moved_total{engine=\"sockmap\"}");
        eprintln!("{engine}: {flows} flows, {moved} moved, {trimmed} buffers were trimmed");
        assert_eq!((doubtful, unreadable), (0, 0), "no flow was in doubt");
        match engine == "sockmap" || moved > 0.0 {
            true => (),
            false if is_slow() => skip("so slow a machine merges messages, and no flow moved"),
            false => panic!("no flow moved"),
        }
    }
    if engine == "packet" {
        inspect_wire(lab, agent, flows);
    }
    let mut lines = 0;
    for fates in lab.fates() {
        eprintln!("{fates}");
        assert!(!fates.counts().contains(&0), "{fates}");
        lines += 1;
    }
    assert_eq!(lines, if loss.is_some() { 2 } else { 0 });
}

/// Nearly all left their sockets, and nothing odd was on the wire.
fn inspect_wire(lab: &Lab, agent: &Agent, flows: usize) {
    let by_packet = |line: &&str| line.contains("declined_total{engine=\"packet\"");
    let metrics = agent.metrics(lab);
    let stayed: Vec<&str> = metrics.lines().filter(by_packet).collect();
    eprintln!("packet: {flows} flows, with their sockets stayed {stayed:?}");
    let stays = |line: &&str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    let number = stayed.iter().map(stays).sum::<usize>();
    assert!(number < flows / 10 + 10, "{stayed:?}");
    // What a wire carries has its checksum; between veths nobody looks at it.
    for name in lab.names() {
        assert_eq!(lab.inside(name, || count("snmp", "Tcp", "InCsumErrors")), 0, "{name}");
    }
    // What is doubled behind the end of a flow is answered with a reset where its sockets were.
    let resets = lab.proxy(|| count("snmp", "Tcp", "OutRsts"));
    assert!(resets <= 3 * number as u64, "{resets} resets by the host between");
}

/// How many flows; CI runs a few.
fn flows(few: usize) -> usize {
    let many = std::env::var("SNISPLIT_STORM").ok().and_then(|text| text.parse().ok());
    many.unwrap_or(few)
}

#[test]
fn every_byte_of_many_odd_flows() {
    for engine in ENGINES {
        storm(Storm { engine, flows: flows(400), loss: None, manner: ALL_SIZES });
    }
}

/// Flows that `auto` moves to the kernel in the middle of a conversation.
#[test]
fn every_byte_of_flows_that_change_their_engine() {
    storm(Storm { engine: "auto", flows: flows(400), loss: None, manner: SMALL });
    storm(Storm { engine: "auto", flows: flows(200), loss: None, manner: BY_TURNS });
    storm(Storm { engine: "auto", flows: flows(30), loss: Some(1), manner: SINGLE });
}

/// Retransmissions that overlap what has been forwarded are what a sockmap forwards twice; and packets
/// that nobody between the peers repeats are what the packet engine has to let through in any order.
#[test]
fn every_byte_over_bad_lines() {
    for engine in ["sockmap", "packet"] {
        for (loss, manner) in [(1, ALL_SIZES), (4, SMALL)] {
            storm(Storm { engine, flows: flows(60), loss: Some(loss), manner });
        }
    }
}
