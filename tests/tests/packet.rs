//! Flows of the packet engine: without their agent, at their ends, and when the engine has no room.

//@ engines: named

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use snisplit_common::abi::packet::PACKET_TUPLES_MAP;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::{dump_map, fill_tuple_map};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::flow_entry_count;
use snisplit_tests::stream::{
    RandomStream, accept, listen, read_all, read_exact, read_to_end_or_error, shutdown_write, write,
};
use snisplit_tests::testbed::{ANSWER, Peers, Testbed};
use snisplit_tests::wait::{default_timeout, wait_until};

const PACKET_ENGINE: [&str; 2] = ["--engine", "packet"];
/// Number of flows that outlive their agent, unless `SNISPLIT_FLOWS` has another one.
const DEFAULT_FLOW_COUNT: usize = 100;

fn flow_count() -> usize {
    let count = std::env::var("SNISPLIT_FLOWS").ok().and_then(|text| text.parse().ok());
    count.unwrap_or(DEFAULT_FLOW_COUNT)
}

/// An agent is killed, its flows carry downloads meanwhile, and the next agent records all of them when they end.
#[test]
fn flows_survive_their_agent_and_the_next_agent_adopts_them() {
    let Testbed { agent, listener, lab } = Testbed::new(&PACKET_ENGINE);
    let connect = || Peers::connect_offloaded(&lab, agent::address(), &listener);
    let flows: Vec<_> = (0..flow_count()).map(|_| connect()).collect();
    let bytes = 20_000_000 / flows.len();
    agent.signal(Signal::KILL);
    let killed = agent.allow_warnings();
    download_on_all(&flows, bytes);
    drop(killed);
    let agent = Agent::start(&lab, &[&PACKET_ENGINE[..], &snisplit_tests::testbed::ROUTE].concat());
    assert_eq!(agent.log_count(&format!("flows adopted flows={}", flows.len())), 1);
    assert!(agent.open_descriptors("socket:") < 10, "an adopted flow has no socket");
    let new_flow = connect();
    shutdown_write(&new_flow.client);
    shutdown_write(&new_flow.backend);
    assert_eq!(agent.next_record()["reason"], "route");
    for flow in &flows {
        send_more_and_close(flow);
        let record = agent.next_record();
        assert_eq!(
            (&record["outcome"], &record["reason"], &record["route"], &record["engine"]),
            (&"closed".into(), &"adopted".into(), &"a.test".into(), &"packet".into()),
            "{record}"
        );
        assert_eq!(
            (&record["bytes_up"], &record["bytes_down"]),
            (&4.into(), &(bytes + ANSWER.len()).into()),
            "{record}"
        );
    }
}

fn download_on_all(flows: &[Peers], bytes: usize) {
    let mut expected = vec![0; bytes];
    RandomStream::default().fill(&mut expected);
    thread::scope(|scope| {
        for Peers { client, backend } in flows {
            let sending = scope.spawn(|| RandomStream::default().send(backend, bytes));
            assert!(read_exact(client, bytes) == expected, "other bytes arrived");
            sending.join().unwrap();
        }
    });
}

/// Sends 4 bytes to the back end, and ends both directions.
fn send_more_and_close(flow: &Peers) {
    write(&flow.client, b"more");
    assert_eq!(read_exact(&flow.backend, 4), b"more");
    flow.close();
}

#[test]
fn the_drain_timeout_resets_both_peers() {
    let flow = Flow::open_with("packet", &["--drain-timeout", "100ms"]);
    let Flow { client, backend, agent, .. } = &flow;
    write(client, b"in between");
    assert_eq!(read_exact(backend, 10), b"in between");
    agent.signal(Signal::TERM);
    for side in [client, backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    flow.assert_record(10, 0, "shutdown");
}

#[test]
fn an_idle_flow_is_reset() {
    let flow = Flow::open_with("packet", &["--idle-timeout", "1s"]);
    for side in [&flow.client, &flow.backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    flow.assert_record(0, 0, "idle_timeout");
}

#[test]
fn a_reused_client_port_is_a_new_flow() {
    let Testbed { agent, listener, lab } = Testbed::new(&PACKET_ENGINE);
    // Port 0 has the kernel choose one.
    let mut port = 0;
    for _ in 0..3 {
        let client = lab.in_client(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.set_reuse_address(true).unwrap();
            let from = SocketAddr::from(([10, 91, 1, 2], port));
            socket.bind(&from.into()).unwrap();
            socket.connect(&agent::address().into()).unwrap();
            TcpStream::from(socket)
        });
        client.set_read_timeout(Some(default_timeout())).unwrap();
        port = client.local_addr().unwrap().port();
        let hello = ClientHello::new().sni(b"a.test").encode();
        write(&client, &hello);
        let server = accept(&listener);
        read_exact(&server, hello.len());
        write(&server, ANSWER);
        assert_eq!(read_exact(&client, ANSWER.len()), ANSWER);
        // The back end ends first. The client then has no TIME_WAIT, and its port is free at once.
        shutdown_write(&server);
        assert_eq!(read_all(&client), b"");
        shutdown_write(&client);
        assert_eq!(read_all(&server), b"");
        assert_eq!(agent.next_record()["outcome"], "closed");
    }
}

/// The engine declines new flows, and its flows continue.
#[test]
fn new_flows_are_declined_when_the_tuple_map_is_full() {
    let testbed = Testbed::new(&PACKET_ENGINE);
    let Testbed { agent, lab, .. } = &testbed;
    let declined = "snisplit_engine_declined_total{engine=\"packet\",reason=\"map_full\"}";
    let engine_of = |flow: &Peers| {
        send_more_and_close(flow);
        agent.next_record()["engine"].as_str().unwrap().to_owned()
    };
    let old = testbed.connect_offloaded();
    let remove_entries = fill_tuple_map(&agent.pin_path(PACKET_TUPLES_MAP));
    assert_eq!(engine_of(&testbed.connect_offloaded()), "splice");
    assert_eq!(agent.metric(lab, declined), 1.0);
    assert_eq!(engine_of(&old), "packet");
    remove_entries();
    assert_eq!(engine_of(&testbed.connect_offloaded()), "packet");
}

/// The engine declines new flows, and its flows continue.
#[test]
fn new_flows_are_declined_when_all_ports_are_in_use() {
    let lab = Lab::new();
    let file = lab.dir().join("few.toml");
    let config = "engine = \"packet\"\n[[listener]]\naddress = \"0.0.0.0:443\"\n[[route]]\n\
                  sni = [\"a.test\"]\nbackends = [\"10.91.2.2:8001\"]\n[packet]\n\
                  ports = \"20000-20003\"\n";
    std::fs::write(&file, config).unwrap();
    let agent = Agent::start_with_config(&lab, &file, &[]);
    let listener = listen(&lab, backend(8001));
    let connect = || Peers::connect_offloaded(&lab, agent::address(), &listener);
    let flows: Vec<_> = (0..6).map(|_| connect()).collect();
    let mut engines = Vec::new();
    for flow in &flows {
        send_more_and_close(flow);
        engines.push(agent.next_record()["engine"].as_str().unwrap().to_owned());
    }
    assert_eq!(engines, ["packet", "packet", "packet", "packet", "splice", "splice"]);
    let labels = "{engine=\"packet\",reason=\"no_source_port\"}";
    let name = format!("snisplit_engine_declined_total{labels}");
    assert_eq!(agent.metric(&lab, &name), 2.0);
    wait_until("a port to be usable again after its flow", || {
        send_more_and_close(&connect());
        (agent.next_record()["engine"] == "packet").then_some(())
    });
    // The next flow of a port removes what its last flow has left.
    wait_until("entries of the last flow of each port only", || {
        let tuples = dump_map(&agent.pin_path(PACKET_TUPLES_MAP)).len();
        (tuples == 8 && flow_entry_count(&lab) == 4).then_some(())
    });
}

/// Until the back end answers, the flow has sockets, which need keepalive probes. The answer still starts the takeover.
#[test]
fn a_slow_backend_is_kept_alive_until_takeover() {
    let testbed = Testbed::new(&[&PACKET_ENGINE[..], &["--keepalive", "33s"]].concat());
    let Peers { client, backend } = testbed.connect();
    wait_until("keepalive timers at both sockets", || {
        let mut ss = Command::new("ss");
        ss.args(["-tnoH", "state", "established"]);
        let done = testbed.lab.in_proxy(|| ss.output()).unwrap();
        let timers = String::from_utf8_lossy(&done.stdout).into_owned();
        (timers.matches("timer:(keepalive,3").count() == 2).then_some(())
    });
    write(&backend, b"at last");
    assert_eq!(read_exact(&client, 7), b"at last");
    shutdown_write(&backend);
    shutdown_write(&client);
    let record = testbed.agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
}
