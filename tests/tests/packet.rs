//! Flows that have left the agent: what becomes of them without it, and what others send into them.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::Flow;
use snisplit_tests::hello::Hello;
use snisplit_tests::kernel::{bpftool, fill};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::spliced::{begin, pinned, records};
use snisplit_tests::stream::{
    Noise, accept, connect, ending, finish, listen, read_all, read_some, write,
};
use snisplit_tests::wait::{patience, until};

const ROUTE: [&str; 4] = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
/// Flows that outlive their agent; `SNISPLIT_FLOWS` makes it as many.
const FLOWS: usize = 100;

/// A flow that the kernel has.
fn flow(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
    begin(lab, agent::address(), listener)
}

fn flows() -> usize {
    let many = std::env::var("SNISPLIT_FLOWS").ok().and_then(|text| text.parse().ok());
    many.unwrap_or(FLOWS)
}

/// Killed in the middle of downloads, and another one started: each flow goes on in between and ends as
/// if nothing had been, and the new agent tells of all of them.
#[test]
fn flows_outlive_their_agent_and_the_next_one_adopts_them() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let pairs: Vec<_> = (0..flows()).map(|_| flow(&lab, &listener)).collect();
    let sent = 20_000_000 / pairs.len();
    agent.signal(Signal::KILL);
    let gone = agent.may_warn();
    download(&pairs, sent);
    drop(gone);
    let agent = Agent::start(&lab, &ROUTE);
    assert_eq!(agent.logged(&format!("flows of a former agent go on flows={}", pairs.len())), 1);
    assert!(agent.descriptors("socket:") < 10, "none of them is a socket");
    let (client, server) = flow(&lab, &listener);
    finish(&client);
    finish(&server);
    assert_eq!(agent.record()["reason"], "route");
    for (client, backend) in &pairs {
        end(client, backend);
        let record = agent.record();
        assert_eq!(
            (&record["outcome"], &record["reason"], &record["route"], &record["engine"]),
            (&"closed".into(), &"adopted".into(), &"a.test".into(), &"packet".into()),
            "{record}"
        );
        assert_eq!((&record["up"], &record["down"]), (&4.into(), &(sent + 6).into()), "{record}");
    }
}

fn download(pairs: &[(TcpStream, TcpStream)], bytes: usize) {
    let mut expected = vec![0; bytes];
    Noise::default().fill(&mut expected);
    thread::scope(|scope| {
        for (client, backend) in pairs {
            let sending = scope.spawn(|| Noise::default().send(backend, bytes));
            assert!(read_some(client, bytes) == expected, "other bytes arrived");
            sending.join().unwrap();
        }
    });
}

/// The client says something more and ends, then the back end does.
fn end(client: &TcpStream, backend: &TcpStream) {
    write(client, b"more");
    assert_eq!(read_some(backend, 4), b"more");
    finish(client);
    assert_eq!(read_all(backend), b"");
    finish(backend);
    assert_eq!(read_all(client), b"");
}

/// SIGTERM, and the drain is over: both peers hear of it, although no socket is there to say so.
#[test]
fn a_drain_ends_with_a_reset_for_both() {
    let flow = Flow::open_with("packet", &["--drain", "100ms"]);
    let Flow { client, backend, agent, .. } = &flow;
    write(client, b"in between");
    assert_eq!(read_some(backend, 10), b"in between");
    agent.signal(Signal::TERM);
    for side in [client, backend] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    flow.ends(10, 0, "cut");
}

#[test]
fn an_idle_flow_is_cut() {
    let flow = Flow::open_with("packet", &["--idle-timeout", "1s"]);
    for side in [&flow.client, &flow.backend] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    flow.ends(0, 0, "idle");
}

#[test]
fn a_client_that_comes_back_by_the_same_port_is_a_new_one() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let mut port = 0;
    for _ in 0..3 {
        let client = lab.client(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.set_reuse_address(true).unwrap();
            let from = std::net::SocketAddr::from(([10, 91, 1, 2], port));
            socket.bind(&from.into()).unwrap();
            socket.connect(&agent::address().into()).unwrap();
            TcpStream::from(socket)
        });
        client.set_read_timeout(Some(patience())).unwrap();
        port = client.local_addr().unwrap().port();
        write(&client, &Hello::new().sni(b"a.test").bytes());
        let server = accept(&listener);
        read_some(&server, Hello::new().sni(b"a.test").bytes().len());
        write(&server, b"answer");
        assert_eq!(read_some(&client, 6), b"answer");
        // The back end ends first, so the client's port is free at once.
        finish(&server);
        assert_eq!(read_all(&client), b"");
        finish(&client);
        assert_eq!(read_all(&server), b"");
        assert_eq!(agent.record()["outcome"], "closed");
    }
}

/// Without room for one more, the engine leaves new flows to the ladder, and those that it has go on.
#[test]
fn more_flows_than_room() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let declined = "snisplit_engine_declined_total{engine=\"packet\",reason=\"no_room\"}";
    let carried = |(client, backend): &(TcpStream, TcpStream)| {
        end(client, backend);
        agent.record()["engine"].as_str().unwrap().to_owned()
    };
    let old = flow(&lab, &listener);
    let empty = fill(&pinned(&lab, "tuples"));
    assert_eq!(carried(&flow(&lab, &listener)), "splice");
    assert_eq!(agent.metric(&lab, declined), 1.0);
    assert_eq!(carried(&old), "packet");
    empty();
    assert_eq!(carried(&flow(&lab, &listener)), "packet");
}

/// With all its ports in use, the engine leaves new flows to the ladder, and those that it has go on.
#[test]
fn more_flows_than_ports() {
    let lab = Lab::new();
    let file = lab.folder().join("few.toml");
    let config = "engine = \"packet\"\n[[listener]]\naddress = \"0.0.0.0:443\"\n[[route]]\n\
                  sni = [\"a.test\"]\nbackends = [\"10.91.2.2:8001\"]\n[packet]\n\
                  ports = \"20000-20003\"\n";
    std::fs::write(&file, config).unwrap();
    let agent = Agent::start_from(&lab, &file, &[]);
    let listener = listen(&lab, backend(8001));
    let pairs: Vec<_> = (0..6).map(|_| flow(&lab, &listener)).collect();
    let mut engines = Vec::new();
    for (client, backend) in &pairs {
        end(client, backend);
        engines.push(agent.record()["engine"].as_str().unwrap().to_owned());
    }
    assert_eq!(engines, ["packet", "packet", "packet", "packet", "splice", "splice"]);
    let labels = "{engine=\"packet\",reason=\"no_port\"}";
    let name = format!("snisplit_engine_declined_total{labels}");
    assert_eq!(agent.metric(&lab, &name), 2.0);
    // Ports come back when they have rested.
    until("a port that has rested", || {
        let (client, backend) = flow(&lab, &listener);
        end(&client, &backend);
        (agent.record()["engine"] == "packet").then_some(())
    });
    // What was left of a port's last flow goes when the next one leaves by it.
    until("nothing but the last flows", || {
        let tuples = bpftool(&["map", "dump", "pinned", &pinned(&lab, "tuples")]);
        (tuples.as_array()?.len() == 8 && records(&lab) == 4).then_some(())
    });
}

/// A back end that takes its time is kept alive like one of any other engine, and its answer still makes
/// the flow the kernel's.
#[test]
fn a_back_end_that_is_slow_to_answer_is_kept_alive() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &[&ROUTE[..], &["--keepalive", "33s"]].concat());
    let listener = listen(&lab, backend(8001));
    let client = connect(&lab, agent::address());
    let hello = Hello::new().sni(b"a.test").bytes();
    write(&client, &hello);
    let server = accept(&listener);
    assert_eq!(read_some(&server, hello.len()), hello);
    until("both legs are kept alive", || {
        let mut ss = Command::new("ss");
        let done = lab.proxy(|| ss.args(["-tnoH", "state", "established"]).output()).unwrap();
        let timers = String::from_utf8_lossy(&done.stdout).into_owned();
        (timers.matches("timer:(keepalive,3").count() == 2).then_some(())
    });
    write(&server, b"at last");
    assert_eq!(read_some(&client, 7), b"at last");
    finish(&server);
    finish(&client);
    let record = agent.record();
    assert_eq!((&record["engine"], &record["outcome"]), (&"packet".into(), &"closed".into()));
}
