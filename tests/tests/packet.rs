//! Flows that have left the agent: what becomes of them without it, and what others send into them.

//@ engines: named

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::{bpftool, fill_tuple_map};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::{connect_offloaded, flow_entry_count, map_path};
use snisplit_tests::stream::{
    RandomStream, accept, connect, listen, read_all, read_exact, read_to_end_or_error,
    shutdown_write, write,
};
use snisplit_tests::wait::{default_timeout, wait_until};

const FLAGS: [&str; 4] = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
/// Flows that outlive their agent; `SNISPLIT_FLOWS` makes it as many.
const DEFAULT_FLOW_COUNT: usize = 100;

/// A flow that the kernel has.
fn open_flow(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
    connect_offloaded(lab, agent::address(), listener)
}

fn flow_count() -> usize {
    let many = std::env::var("SNISPLIT_FLOWS").ok().and_then(|text| text.parse().ok());
    many.unwrap_or(DEFAULT_FLOW_COUNT)
}

/// Killed in the middle of downloads, and another one started: each flow goes on in between and ends as
/// if nothing had been, and the new agent tells of all of them.
#[test]
fn flows_survive_their_agent_and_the_next_agent_adopts_them() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &FLAGS);
    let listener = listen(&lab, backend(8001));
    let pairs: Vec<_> = (0..flow_count()).map(|_| open_flow(&lab, &listener)).collect();
    let sent = 20_000_000 / pairs.len();
    agent.signal(Signal::KILL);
    let gone = agent.allow_warnings();
    download_on_all(&pairs, sent);
    drop(gone);
    let agent = Agent::start(&lab, &FLAGS);
    assert_eq!(agent.log_count(&format!("flows of a former agent go on flows={}", pairs.len())), 1);
    assert!(agent.open_descriptors("socket:") < 10, "none of them is a socket");
    let (client, server) = open_flow(&lab, &listener);
    shutdown_write(&client);
    shutdown_write(&server);
    assert_eq!(agent.next_record()["reason"], "route");
    for (client, backend) in &pairs {
        end_flow(client, backend);
        let record = agent.next_record();
        assert_eq!(
            (&record["outcome"], &record["reason"], &record["route"], &record["engine"]),
            (&"closed".into(), &"adopted".into(), &"a.test".into(), &"packet".into()),
            "{record}"
        );
        assert_eq!(
            (&record["bytes_up"], &record["bytes_down"]),
            (&4.into(), &(sent + 6).into()),
            "{record}"
        );
    }
}

fn download_on_all(pairs: &[(TcpStream, TcpStream)], bytes: usize) {
    let mut expected = vec![0; bytes];
    RandomStream::default().fill(&mut expected);
    thread::scope(|scope| {
        for (client, backend) in pairs {
            let sending = scope.spawn(|| RandomStream::default().send(backend, bytes));
            assert!(read_exact(client, bytes) == expected, "other bytes arrived");
            sending.join().unwrap();
        }
    });
}

/// The client says something more and ends, then the back end does.
fn end_flow(client: &TcpStream, backend: &TcpStream) {
    write(client, b"more");
    assert_eq!(read_exact(backend, 4), b"more");
    shutdown_write(client);
    assert_eq!(read_all(backend), b"");
    shutdown_write(backend);
    assert_eq!(read_all(client), b"");
}

/// SIGTERM, and the drain is over: both peers hear of it, although no socket is there to say so.
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
    let lab = Lab::new();
    let agent = Agent::start(&lab, &FLAGS);
    let listener = listen(&lab, backend(8001));
    let mut port = 0;
    for _ in 0..3 {
        let client = lab.in_client(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.set_reuse_address(true).unwrap();
            let from = std::net::SocketAddr::from(([10, 91, 1, 2], port));
            socket.bind(&from.into()).unwrap();
            socket.connect(&agent::address().into()).unwrap();
            TcpStream::from(socket)
        });
        client.set_read_timeout(Some(default_timeout())).unwrap();
        port = client.local_addr().unwrap().port();
        write(&client, &ClientHello::new().sni(b"a.test").encode());
        let server = accept(&listener);
        read_exact(&server, ClientHello::new().sni(b"a.test").encode().len());
        write(&server, b"answer");
        assert_eq!(read_exact(&client, 6), b"answer");
        // The back end ends first, so the client's port is free at once.
        shutdown_write(&server);
        assert_eq!(read_all(&client), b"");
        shutdown_write(&client);
        assert_eq!(read_all(&server), b"");
        assert_eq!(agent.next_record()["outcome"], "closed");
    }
}

/// Without room for one more, the engine leaves new flows to the ladder, and those that it has go on.
#[test]
fn new_flows_are_declined_when_the_tuple_map_is_full() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &FLAGS);
    let listener = listen(&lab, backend(8001));
    let declined = "snisplit_engine_declined_total{engine=\"packet\",reason=\"map_full\"}";
    let carried = |(client, backend): &(TcpStream, TcpStream)| {
        end_flow(client, backend);
        agent.next_record()["engine"].as_str().unwrap().to_owned()
    };
    let old = open_flow(&lab, &listener);
    let empty = fill_tuple_map(&map_path(&lab, "tuples"));
    assert_eq!(carried(&open_flow(&lab, &listener)), "splice");
    assert_eq!(agent.metric(&lab, declined), 1.0);
    assert_eq!(carried(&old), "packet");
    empty();
    assert_eq!(carried(&open_flow(&lab, &listener)), "packet");
}

/// With all its ports in use, the engine leaves new flows to the ladder, and those that it has go on.
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
    let pairs: Vec<_> = (0..6).map(|_| open_flow(&lab, &listener)).collect();
    let mut engines = Vec::new();
    for (client, backend) in &pairs {
        end_flow(client, backend);
        engines.push(agent.next_record()["engine"].as_str().unwrap().to_owned());
    }
    assert_eq!(engines, ["packet", "packet", "packet", "packet", "splice", "splice"]);
    let labels = "{engine=\"packet\",reason=\"no_source_port\"}";
    let name = format!("snisplit_engine_declined_total{labels}");
    assert_eq!(agent.metric(&lab, &name), 2.0);
    // Ports come back when they have rested.
    wait_until("a port that has rested", || {
        let (client, backend) = open_flow(&lab, &listener);
        end_flow(&client, &backend);
        (agent.next_record()["engine"] == "packet").then_some(())
    });
    // What was left of a port's last flow goes when the next one leaves by it.
    wait_until("nothing but the last flows", || {
        let tuples = bpftool(&["map", "dump", "pinned", &map_path(&lab, "tuples")]);
        (tuples.as_array()?.len() == 8 && flow_entry_count(&lab) == 4).then_some(())
    });
}

/// A back end that takes its time is kept alive like one of any other engine, and its answer still makes
/// the flow the kernel's.
#[test]
fn a_slow_backend_is_kept_alive_until_takeover() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &[&FLAGS[..], &["--keepalive", "33s"]].concat());
    let listener = listen(&lab, backend(8001));
    let client = connect(&lab, agent::address());
    let hello = ClientHello::new().sni(b"a.test").encode();
    write(&client, &hello);
    let server = accept(&listener);
    assert_eq!(read_exact(&server, hello.len()), hello);
    wait_until("both legs are kept alive", || {
        let mut ss = Command::new("ss");
        let done = lab.in_proxy(|| ss.args(["-tnoH", "state", "established"]).output()).unwrap();
        let timers = String::from_utf8_lossy(&done.stdout).into_owned();
        (timers.matches("timer:(keepalive,3").count() == 2).then_some(())
    });
    write(&server, b"at last");
    assert_eq!(read_exact(&client, 7), b"at last");
    shutdown_write(&server);
    shutdown_write(&client);
    let record = agent.next_record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
}
