//! Many concurrent short flows with random chunks, pauses, single bytes, and ends in any order. Both peers verify every
//! byte. `SNISPLIT_STRESS` is the number of flows of each run.

//@ engines: named

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::concurrent_load::ConcurrentLoad;
use snisplit_tests::flow::ENGINES;
use snisplit_tests::impaired_link::Impairment;
use snisplit_tests::kernel::{SockmapCounter, proc_net_counter};
use snisplit_tests::lab::{Lab, PROXY6, backend};
use snisplit_tests::link::has_ipv6;
use snisplit_tests::record_skip;
use snisplit_tests::stream::{connect, listen};
use snisplit_tests::traffic::{
    MIXED_SIZES, REQUEST_RESPONSE, SEPARATE_MESSAGES, SMALL_MESSAGES, TrafficPattern, send_payload,
    verify_payload,
};
use snisplit_tests::wait::{default_timeout, is_slow_machine, wait_until};

/// Clients at the same time.
const CONCURRENT_CLIENTS: usize = 24;

/// A SYN that is lost three times arrives 7 s late.
const LONG_TIMEOUTS: [&str; 4] = ["--client-hello-timeout", "20s", "--connect-timeout", "20s"];

/// Factor for the timeout of reads. A peer whose SYN-ACK was late begins with a retransmission timeout of seconds. If its
/// retransmissions are lost, half a minute passes without a byte.
const TIMEOUT_FACTOR: u32 = 6;

/// Parameters of one run.
#[derive(Clone, Copy)]
struct StressRun {
    engine: &'static str,
    flows: usize,
    /// Percentage of packets that the links lose; `None` for links without impairment.
    loss_percent: Option<u64>,
    pattern: TrafficPattern,
}

impl StressRun {
    /// Clients at the same time. Over an impaired link most of them wait.
    fn concurrent_clients(self) -> usize {
        match (self.engine, self.loss_percent) {
            // A busy machine merges small messages, and `auto` then moves fewer flows. Of many flows, some move anyway.
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
    assert_eq!(word, *b"!", "the agent rejected the flow");
}

fn serve(mut stream: TcpStream, hello_len: usize, pattern: TrafficPattern) {
    let mut first = vec![0; hello_len + 8];
    stream.read_exact(&mut first).unwrap();
    let seed = u64::from_be_bytes(first[hello_len..].try_into().unwrap());
    // As with a ServerHello, no peer ends the flow before this byte, so an engine gets a flow that is open.
    stream.write_all(b"!").unwrap();
    exchange_payloads(&stream, seed, 1, pattern);
}

/// An address of the agent, and the server name that clients ask for there.
struct EntryPoint {
    address: SocketAddr,
    name: &'static str,
}

/// Entry points, routes and listener of a run: IPv4 and IPv6 mixed, if the kernel has IPv6.
struct Routing {
    entry_points: Vec<EntryPoint>,
    routes: [&'static str; 2],
    listener: TcpListener,
}

impl Routing {
    fn new(lab: &Lab, engine: &str) -> Self {
        let v4 = EntryPoint { address: agent::address(), name: "a.test" };
        if !has_ipv6() {
            let routes = ["a.test=10.91.2.2:8001", "b.test=10.91.2.2:8001"];
            let listener = listen(lab, backend(8001));
            return Self { entry_points: vec![v4], routes, listener };
        }
        let address = SocketAddr::new(PROXY6.into(), agent::PORT);
        let v6 = EntryPoint { address, name: "b.test" };
        let listener = listen(lab, (Ipv6Addr::UNSPECIFIED, 8001).into());
        let routes = match engine {
            // The packet engine cannot translate from one family to the other.
            "packet" => ["a.test=10.91.2.2:8001", "b.test=[fd91:2::2]:8001"],
            _ => {
                ["a.test=10.91.2.2:8001,[fd91:2::2]:8001", "b.test=10.91.2.2:8001,[fd91:2::2]:8001"]
            }
        };
        Self { entry_points: vec![v4, v6], routes, listener }
    }
}

fn run_stress(run: StressRun) {
    let StressRun { engine, flows, loss_percent, pattern } = run;
    let lab = match loss_percent {
        Some(percent) => Lab::impaired(Impairment::lossy(percent)),
        None => Lab::new(),
    };
    let Routing { entry_points, routes: [a, b], listener } = Routing::new(&lab, engine);
    let args = ["--engine", engine, "--route", a, "--route", b];
    let agent = Agent::start(&lab, &[&args[..], &LONG_TIMEOUTS].concat());
    let hello = |name: &str| ClientHello::new().sni(name.as_bytes()).encode();
    let hello_len = hello("a.test").len();
    let read_timeout = default_timeout() * TIMEOUT_FACTOR;
    let load = ConcurrentLoad {
        listener: &listener,
        clients: run.concurrent_clients(),
        flows,
        read_timeout,
    };
    let run_client = |number: usize| {
        let EntryPoint { address, name } = &entry_points[number % entry_points.len()];
        let seed = number as u64 + 1;
        let stream = connect(&lab, *address);
        stream.set_read_timeout(Some(read_timeout)).unwrap();
        send_hello_and_seed(&stream, &hello(name), seed);
        exchange_payloads(&stream, seed, 0, pattern);
    };
    let failed = load.run(run_client, |stream| serve(stream, hello_len, pattern));
    assert!(failed == 0, "{engine}: flows that were not closed: {:#?}", records_not_closed(&agent));
    check_result(&lab, &agent, run);
}

/// Records of flows whose outcome is not `closed`.
fn records_not_closed(agent: &Agent) -> Vec<Value> {
    let records = std::iter::from_fn(|| agent.next_record_within(Duration::from_secs(1)));
    records.filter(|record| record["outcome"] != "closed").collect()
}

/// Asserts that all flows were closed in order on their engine, and that no socket is left.
fn check_result(lab: &Lab, agent: &Agent, run: StressRun) {
    let StressRun { engine, flows, loss_percent, .. } = run;
    let closed = "snisplit_connections_ended_total{outcome=\"closed\"}";
    wait_until("all to be closed", || (agent.metric(lab, closed) == flows as f64).then_some(()));
    let labels = "engine=\"sockmap\",reason=\"half_closed\"";
    let declined = agent.metric(lab, &format!("snisplit_engine_declined_total{{{labels}}}"));
    assert!(engine == "auto" || declined == 0.0, "sockmap declined {declined} flows");
    assert!(agent.open_descriptors("socket:") < 20, "sockets are left");
    if ["sockmap", "auto"].contains(&engine) {
        let trimmed = agent.sockmap_counter(SockmapCounter::Trimmed);
        let poisoning = [SockmapCounter::InvalidSequence, SockmapCounter::KernelReadFailed];
        let moved = agent.metric(lab, "snisplit_engine_handovers_total{engine=\"sockmap\"}");
        eprintln!("{engine}: {flows} flows, {moved} handed over, {trimmed} buffers trimmed");
        assert_eq!(poisoning.map(|counter| agent.sockmap_counter(counter)), [0, 0]);
        match engine == "sockmap" || moved > 0.0 {
            true => (),
            false if is_slow_machine() => {
                record_skip("on a slow machine, messages merged and no flow was handed over")
            }
            false => panic!("no flow was handed over"),
        }
    }
    if engine == "packet" {
        check_wire(lab, agent, flows);
    }
    let mut impaired_links = 0;
    for stats in lab.link_stats() {
        eprintln!("{stats}");
        assert!(!stats.counts().contains(&0), "{stats}");
        impaired_links += 1;
    }
    assert_eq!(impaired_links, if loss_percent.is_some() { 2 } else { 0 });
}

/// Asserts that nearly all flows were offloaded, that checksums were right, and that the proxy sent few resets.
fn check_wire(lab: &Lab, agent: &Agent, flows: usize) {
    let by_packet = |line: &&str| line.contains("declined_total{engine=\"packet\"");
    let metrics = agent.metrics(lab);
    let not_offloaded: Vec<&str> = metrics.lines().filter(by_packet).collect();
    eprintln!("packet: {flows} flows, declined {not_offloaded:?}");
    let count = |line: &&str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    let number = not_offloaded.iter().map(count).sum::<usize>();
    assert!(number < flows / 10 + 10, "{not_offloaded:?}");
    // TAP devices verify checksums, veths do not.
    for name in lab.namespace_names() {
        assert_eq!(
            lab.in_namespace(name, || proc_net_counter("snmp", "Tcp", "InCsumErrors")),
            0,
            "{name}"
        );
    }
    // The proxy answers a packet behind the end of a flow with a reset, if the flow had sockets there.
    let resets = lab.in_proxy(|| proc_net_counter("snmp", "Tcp", "OutRsts"));
    assert!(resets <= 3 * number as u64, "{resets} resets by the proxy's host");
}

/// `SNISPLIT_STRESS`, or the default.
fn flow_count(default: usize) -> usize {
    let count = std::env::var("SNISPLIT_STRESS").ok().and_then(|text| text.parse().ok());
    count.unwrap_or(default)
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

/// A sockmap would forward retransmissions twice that overlap forwarded bytes. The packet engine has to forward packets in
/// any order.
#[test]
fn flows_over_impaired_links_are_intact() {
    for engine in ["sockmap", "packet"] {
        for (loss, pattern) in [(1, MIXED_SIZES), (4, SMALL_MESSAGES)] {
            run_stress(StressRun {
                engine,
                flows: flow_count(60),
                loss_percent: Some(loss),
                pattern,
            });
        }
    }
}
