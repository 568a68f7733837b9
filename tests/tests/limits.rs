//! Caps and guards: what is too much is refused by reason, and what is not is never hurt by it.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::hello::Hello;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{accept, connect, ending, finish, listen, read_all, read_some, write};
use snisplit_tests::wait::until;

const TURNED_AWAY: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

struct Scene {
    agent: Agent,
    listener: TcpListener,
    lab: Lab,
}

impl Scene {
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let route = ["--route", "a.test=10.91.2.2:8001"];
        let agent = Agent::start(&lab, &[&route[..], flags].concat());
        let listener = listen(&lab, backend(8001));
        Self { agent, listener, lab }
    }

    /// A flow that has begun: client and back end.
    fn flow(&self, hello: &Hello) -> (TcpStream, TcpStream) {
        let client = connect(&self.lab, agent::address());
        write(&client, &hello.bytes());
        let backend = accept(&self.listener);
        assert_eq!(read_some(&backend, hello.bytes().len()), hello.bytes());
        (client, backend)
    }

    /// A connection that is turned away, for this reason.
    #[track_caller]
    fn turned_away(&self, bytes: &[u8], reason: &str) -> Value {
        let client = connect(&self.lab, agent::address());
        // A hello may meet a socket that is closed already, and then a reset meets the alert.
        let _closed_already = std::io::Write::write_all(&mut &client, bytes);
        let (heard, end) = ending(&client);
        assert!(heard == TURNED_AWAY || end.is_err(), "{heard:?}");
        let record = self.agent.record();
        assert_eq!(record["reason"], reason, "{record}");
        let counted = format!("snisplit_refused_total{{reason=\"{reason}\"}}");
        assert!(self.agent.metric(&self.lab, &counted) >= 1.0);
        record
    }

    /// Ends a flow in order and takes its record.
    fn end(&self, (client, backend): (TcpStream, TcpStream)) {
        finish(&client);
        assert_eq!(read_all(&backend), b"");
        finish(&backend);
        assert_eq!(read_all(&client), b"");
        assert_eq!(self.agent.record()["outcome"], "closed");
    }
}

fn plain() -> Hello {
    Hello::new().sni(b"a.test")
}

#[test]
fn max_connections_counts_all_and_lets_in_again() {
    let scene = Scene::new(&["--max-connections", "2"]);
    let (one, two) = (scene.flow(&plain()), scene.flow(&plain()));
    scene.turned_away(b"", "max_connections");
    scene.end(one);
    let three = scene.flow(&plain());
    scene.turned_away(b"", "max_connections");
    scene.end(two);
    scene.end(three);
}

#[test]
fn per_source_counts_flows_but_no_validations() {
    let scene = Scene::new(&["--per-source", "1"]);
    let flow = scene.flow(&plain());
    scene.turned_away(&plain().bytes(), "per_source");
    let validation = plain().alpn(&["acme-tls/1"]);
    let validations = [0; 3].map(|_| scene.flow(&validation));
    scene.turned_away(&plain().bytes(), "per_source");
    validations.into_iter().for_each(|validation| scene.end(validation));
    scene.end(flow);
    scene.end(scene.flow(&plain()));
}

#[test]
fn silent_connections_have_a_cap_of_their_own() {
    let scene = Scene::new(&["--max-peeking", "3", "--per-source", "100"]);
    let flows = [0; 5].map(|_| scene.flow(&plain()));
    // One of the four is too many; which one, is the scheduler's business.
    let silent = [0; 4].map(|_| connect(&scene.lab, agent::address()));
    assert_eq!(scene.agent.record()["reason"], "max_peeking");
    drop(silent);
    flows.into_iter().for_each(|flow| scene.end_quietly(flow));
}

impl Scene {
    /// Ends a flow among others whose records come in between.
    fn end_quietly(&self, (client, backend): (TcpStream, TcpStream)) {
        finish(&client);
        finish(&backend);
        assert_eq!((read_all(&backend), read_all(&client)), (vec![], vec![]));
        self.agent.record_of("a.test");
    }
}

#[test]
fn accept_rate_is_a_token_bucket() {
    let scene = Scene::new(&["--accept-rate", "3"]);
    let begun = Instant::now();
    let reasons: Vec<Value> = (0..20)
        .map(|_| {
            let client = connect(&scene.lab, agent::address());
            finish(&client);
            read_all(&client);
            scene.agent.record()["reason"].clone()
        })
        .collect();
    let turned_away = reasons.iter().filter(|reason| **reason == "accept_rate").count();
    let let_in = reasons.iter().filter(|reason| reason.is_null()).count();
    assert_eq!(turned_away + let_in, reasons.len(), "{reasons:?}");
    // As many as the bucket holds, and those for which it has been filled again meanwhile.
    let most = 3 + (begun.elapsed().as_secs_f64() * 3.0) as usize;
    assert!((3..=most).contains(&let_in), "{let_in} of {most}: {reasons:?}");
    until("a token", || {
        let client = connect(&scene.lab, agent::address());
        finish(&client);
        read_all(&client);
        scene.agent.record()["reason"].is_null().then_some(())
    });
}

/// A route that leads back to the agent is cut at the first turn.
#[test]
fn a_loop_is_noticed() {
    let scene = Scene::new(&["--route", "loop.test=10.91.1.1:443"]);
    let client = connect(&scene.lab, agent::address());
    write(&client, &Hello::new().sni(b"loop.test").bytes());
    finish(&client);
    assert_eq!(read_all(&client), TURNED_AWAY);
    let mut records = [scene.agent.record(), scene.agent.record()];
    records.sort_by_key(|record| record["reason"] != "loop");
    let [inner, outer] = records;
    assert_eq!(inner["reason"], "loop", "{inner}");
    assert_eq!(outer["outcome"], "closed", "{outer}");
    assert!(outer["client"].as_str().unwrap().starts_with("10.91.1.2:"), "{outer}");
}

#[test]
fn back_ends_outside_the_allowed_networks_are_not_dialled() {
    let scene = Scene::new(&["--backends-allowed", "192.0.2.0/24"]);
    scene.listener.set_nonblocking(true).unwrap();
    let client = connect(&scene.lab, agent::address());
    write(&client, &plain().bytes());
    assert_eq!(read_all(&client), TURNED_AWAY);
    assert_eq!(scene.agent.record()["reason"], "no_backend");
    assert_eq!(scene.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn an_idle_flow_is_reset_and_a_busy_one_is_not() {
    let scene = Scene::new(&["--idle-timeout", "1s"]);
    let (client, backend) = scene.flow(&plain());
    let begun = Instant::now();
    while begun.elapsed().as_millis() < 2_500 {
        write(&client, b"busy");
        assert_eq!(read_some(&backend, 4), b"busy");
        snisplit_tests::wait::pass(std::time::Duration::from_millis(50));
    }
    for side in [&client, &backend] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert_eq!(scene.agent.record()["outcome"], "idle");
}
