//! Many short flows at once that do what one seldom does: random cuts, pauses, single bytes, ends in
//! any order. Every byte is checked at both ends. `SNISPLIT_STRESS` is how many; CI runs a few.

//@ engines: named

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::ENGINES;
use snisplit_tests::impaired_link::Impairment;
use snisplit_tests::kernel::{proc_net_counter, sockmap_counter};
use snisplit_tests::lab::{Lab, PROXY6, backend};
use snisplit_tests::link::has_ipv6;
use snisplit_tests::record_skip;
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::traffic::{
    MIXED_SIZES, REQUEST_RESPONSE, SEPARATE_MESSAGES, SMALL_MESSAGES, TrafficPattern, send_payload,
    verify_payload,
};
use snisplit_tests::wait::{default_timeout, is_slow_machine, sleep_for, wait_until};

/// Clients at once.
const CONCURRENT_CLIENTS: usize = 24;

/// A SYN that is lost three times is late by 7 s.
const LONG_TIMEOUTS: [&str; 4] = ["--client-hello-timeout", "20s", "--connect-timeout", "20s"];

/// How much longer than usual nothing may come. A peer that begins with a retransmission timeout of seconds,
/// because its SYN-ACK was late, and loses what it repeats, is silent for half a minute now and then.
const TIMEOUT_FACTOR: u32 = 6;

/// A kind of storm.
#[derive(Clone, Copy)]
struct StressRun {
    engine: &'static str,
    flows: usize,
    /// What the lines lose, of a hundred; `None` is a good line.
    loss_percent: Option<u64>,
    pattern: TrafficPattern,
}

impl StressRun {
    /// Clients at once. Over a bad line most of them wait.
    fn concurrent_clients(self) -> usize {
        match (self.engine, self.loss_percent) {
            // Where the machine has time for each message, it stays one, and `auto` moves the flow. Of
            // many flows some move anyway.
            ("auto", Some(_)) if self.flows < 100 => CONCURRENT_CLIENTS / 3,
            (_, Some(_)) => 3 * CONCURRENT_CLIENTS,
            (_, None) => CONCURRENT_CLIENTS,
        }
    }
}

fn exchange_payloads(stream: &TcpStream, seed: u64, side: u64, pattern: TrafficPattern) {
    thread::scope(|scope| {
        scope.spawn(|| send_payload(stream, seed, side, pattern));
        verify_payload(stream, seed, 1 - side, pattern.max_bytes);
    });
}

fn send_hello_and_seed(mut stream: &TcpStream, hello: &[u8], seed: u64) {
    stream.write_all(&[hello, &seed.to_be_bytes()].concat()).unwrap();
    let mut word = [0];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(word, *b"!", "an alert: the flow was refused");
}

fn serve(listener: &TcpListener, hello_len: usize, pattern: TrafficPattern, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            sleep_for(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(default_timeout() * TIMEOUT_FACTOR)).unwrap();
        let mut first = vec![0; hello_len + 8];
        stream.read_exact(&mut first).unwrap();
        let seed = u64::from_be_bytes(first[hello_len..].try_into().unwrap());
        // Like a ServerHello: nobody ends before it, so every flow is handed over alive.
        stream.write_all(b"!").unwrap();
        exchange_payloads(&stream, seed, 1, pattern);
    }
}

/// Where clients come in and what they ask for, the ways on, and who listens there: IPv4 and IPv6 mixed,
/// if there is any. Packets of the one cannot become packets of the other.
fn listener_and_routes(
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

fn run_stress(run: StressRun) {
    let StressRun { engine, flows, loss_percent: loss, pattern: manner } = run;
    let lab = match loss {
        Some(percent) => Lab::impaired(Impairment::lossy(percent)),
        None => Lab::new(),
    };
    let (entry_points, [a, b], listener) = listener_and_routes(&lab, engine);
    let args = ["--engine", engine, "--route", a, "--route", b];
    let agent = Agent::start(&lab, &[&args[..], &LONG_TIMEOUTS].concat());
    listener.set_nonblocking(true).unwrap();
    let hello = |name: &str| ClientHello::new().sni(name.as_bytes()).encode();
    let length = hello("a.test").len();
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let servers: Vec<_> = (0..run.concurrent_clients() + 4)
            .map(|_| scope.spawn(|| serve(&listener, length, manner, &over)))
            .collect();
        let clients: Vec<_> = (0..run.concurrent_clients())
            .map(|_| {
                scope.spawn(|| {
                    while let seed @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                        && seed < flows
                    {
                        let (entrance, name) = entry_points[seed % entry_points.len()];
                        let stream = connect(&lab, entrance);
                        stream.set_read_timeout(Some(default_timeout() * TIMEOUT_FACTOR)).unwrap();
                        send_hello_and_seed(&stream, &hello(name), seed as u64 + 1);
                        exchange_payloads(&stream, seed as u64 + 1, 0, manner);
                    }
                })
            })
            .collect();
        let clients: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        let servers = servers.into_iter().map(thread::ScopedJoinHandle::join);
        let failed = clients.into_iter().chain(servers).filter(Result::is_err).count();
        assert!(failed == 0, "{engine}, not ended in order: {:#?}", records_not_closed(&agent));
    });
    check_result(&lab, &agent, run);
}

/// What the agent says of flows that were not closed.
fn records_not_closed(agent: &Agent) -> Vec<Value> {
    let records = std::iter::from_fn(|| agent.next_record_within(Duration::from_secs(1)));
    records.filter(|record| record["outcome"] != "closed").collect()
}

/// All ended in order, by the engine that was asked for, without a doubt and without a leak.
fn check_result(
    lab: &Lab,
    agent: &Agent,
    StressRun { engine, flows, loss_percent: loss, .. }: StressRun,
) {
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    wait_until("all to be closed", || (agent.metric(lab, closed) == flows as f64).then_some(()));
    let labels = "engine=\"sockmap\",reason=\"half_closed\"";
    let declined = agent.metric(lab, &format!("snisplit_engine_declined_total{{{labels}}}"));
    assert!(
        engine == "auto" || declined == 0.0,
        "{declined} flows were not carried as they should"
    );
    assert!(agent.open_descriptors("socket:") < 20, "no socket is left");
    if ["sockmap", "auto"].contains(&engine) {
        let instance = lab.namespace_names()[1];
        let [trimmed, doubtful, unreadable] = [5, 6, 7].map(|slot| sockmap_counter(instance, slot));
        let moved = agent.metric(lab, "snisplit_engine_handovers_total{engine=\"sockmap\"}");
        eprintln!("{engine}: {flows} flows, {moved} moved, {trimmed} buffers were trimmed");
        assert_eq!((doubtful, unreadable), (0, 0), "no flow was in doubt");
        match engine == "sockmap" || moved > 0.0 {
            true => (),
            false if is_slow_machine() => {
                record_skip("so slow a machine merges messages, and no flow moved")
            }
            false => panic!("no flow moved"),
        }
    }
    if engine == "packet" {
        check_wire(lab, agent, flows);
    }
    let mut lines = 0;
    for fates in lab.link_stats() {
        eprintln!("{fates}");
        assert!(!fates.counts().contains(&0), "{fates}");
        lines += 1;
    }
    assert_eq!(lines, if loss.is_some() { 2 } else { 0 });
}

/// Nearly all left their sockets, and nothing odd was on the wire.
fn check_wire(lab: &Lab, agent: &Agent, flows: usize) {
    let by_packet = |line: &&str| line.contains("declined_total{engine=\"packet\"");
    let metrics = agent.metrics(lab);
    let not_offloaded: Vec<&str> = metrics.lines().filter(by_packet).collect();
    eprintln!("packet: {flows} flows, with their sockets stayed {not_offloaded:?}");
    let stays = |line: &&str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    let number = not_offloaded.iter().map(stays).sum::<usize>();
    assert!(number < flows / 10 + 10, "{not_offloaded:?}");
    // What a wire carries has its checksum; between veths nobody looks at it.
    for name in lab.namespace_names() {
        assert_eq!(
            lab.in_namespace(name, || proc_net_counter("snmp", "Tcp", "InCsumErrors")),
            0,
            "{name}"
        );
    }
    // What is doubled behind the end of a flow is answered with a reset where its sockets were.
    let resets = lab.in_proxy(|| proc_net_counter("snmp", "Tcp", "OutRsts"));
    assert!(resets <= 3 * number as u64, "{resets} resets by the host between");
}

/// How many flows; CI runs a few.
fn flow_count(few: usize) -> usize {
    let many = std::env::var("SNISPLIT_STRESS").ok().and_then(|text| text.parse().ok());
    many.unwrap_or(few)
}

#[test]
fn flows_with_random_writes_and_closes_are_intact() {
    for engine in ENGINES {
        run_stress(StressRun {
            engine,
            flows: flow_count(400),
            loss_percent: None,
            pattern: MIXED_SIZES,
        });
    }
}

/// Flows that `auto` moves to the kernel in the middle of a conversation.
#[test]
fn flows_are_intact_across_a_handover() {
    run_stress(StressRun {
        engine: "auto",
        flows: flow_count(400),
        loss_percent: None,
        pattern: SMALL_MESSAGES,
    });
    run_stress(StressRun {
        engine: "auto",
        flows: flow_count(200),
        loss_percent: None,
        pattern: REQUEST_RESPONSE,
    });
    run_stress(StressRun {
        engine: "auto",
        flows: flow_count(30),
        loss_percent: Some(1),
        pattern: SEPARATE_MESSAGES,
    });
}

/// Retransmissions that overlap what has been forwarded are what a sockmap forwards twice; and packets
/// that nobody between the peers repeats are what the packet engine has to let through in any order.
#[test]
fn flows_over_impaired_links_are_intact() {
    for engine in ["sockmap", "packet"] {
        for (loss, manner) in [(1, MIXED_SIZES), (4, SMALL_MESSAGES)] {
            run_stress(StressRun {
                engine,
                flows: flow_count(60),
                loss_percent: Some(loss),
                pattern: manner,
            });
        }
    }
}
