//! Caps and guards: what is too much is refused by reason, and what is not is never hurt by it.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{
    accept, connect, listen, read_all, read_exact, read_to_end_or_error, shutdown_write, write,
};
use snisplit_tests::wait::wait_until;

const INTERNAL_ERROR_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

struct Setup {
    agent: Agent,
    listener: TcpListener,
    lab: Lab,
}

impl Setup {
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let route = ["--route", "a.test=10.91.2.2:8001"];
        let agent = Agent::start(&lab, &[&route[..], flags].concat());
        let listener = listen(&lab, backend(8001));
        Self { agent, listener, lab }
    }

    /// A flow that has begun: client and back end.
    fn open_flow(&self, hello: &ClientHello) -> (TcpStream, TcpStream) {
        let client = connect(&self.lab, agent::address());
        write(&client, &hello.encode());
        let backend = accept(&self.listener);
        assert_eq!(read_exact(&backend, hello.encode().len()), hello.encode());
        (client, backend)
    }

    /// A connection that is turned away, for this reason.
    #[track_caller]
    fn assert_rejected(&self, bytes: &[u8], reason: &str) -> Value {
        let client = connect(&self.lab, agent::address());
        // A hello may meet a socket that is closed already, and then a reset meets the alert.
        let _closed_already = std::io::Write::write_all(&mut &client, bytes);
        let (received, end) = read_to_end_or_error(&client);
        assert!(received == INTERNAL_ERROR_ALERT || end.is_err(), "{received:?}");
        let record = self.agent.next_record();
        assert_eq!(record["reason"], reason, "{record}");
        let counted = format!("snisplit_connections_rejected_total{{reason=\"{reason}\"}}");
        assert!(self.agent.metric(&self.lab, &counted) >= 1.0);
        record
    }

    /// Ends a flow in order and takes its record.
    fn end_flow(&self, (client, backend): (TcpStream, TcpStream)) {
        shutdown_write(&client);
        assert_eq!(read_all(&backend), b"");
        shutdown_write(&backend);
        assert_eq!(read_all(&client), b"");
        assert_eq!(self.agent.next_record()["outcome"], "closed");
    }
}

fn client_hello() -> ClientHello {
    ClientHello::new().sni(b"a.test")
}

#[test]
fn max_connections_is_enforced_and_released() {
    let setup = Setup::new(&["--max-connections", "2"]);
    let (one, two) = (setup.open_flow(&client_hello()), setup.open_flow(&client_hello()));
    setup.assert_rejected(b"", "max_connections");
    setup.end_flow(one);
    let three = setup.open_flow(&client_hello());
    setup.assert_rejected(b"", "max_connections");
    setup.end_flow(two);
    setup.end_flow(three);
}

#[test]
fn the_limit_per_source_excludes_validations() {
    let setup = Setup::new(&["--max-connections-per-source", "1"]);
    let flow = setup.open_flow(&client_hello());
    setup.assert_rejected(&client_hello().encode(), "max_connections_per_source");
    let validation = client_hello().alpn(&["acme-tls/1"]);
    let validations = [0; 3].map(|_| setup.open_flow(&validation));
    setup.assert_rejected(&client_hello().encode(), "max_connections_per_source");
    validations.into_iter().for_each(|validation| setup.end_flow(validation));
    setup.end_flow(flow);
    setup.end_flow(setup.open_flow(&client_hello()));
}

#[test]
fn pending_handshakes_have_a_limit_of_their_own() {
    let setup =
        Setup::new(&["--max-pending-handshakes", "3", "--max-connections-per-source", "100"]);
    let flows = [0; 5].map(|_| setup.open_flow(&client_hello()));
    // One of the four is too many; which one, is the scheduler's business.
    let silent = [0; 4].map(|_| connect(&setup.lab, agent::address()));
    assert_eq!(setup.agent.next_record()["reason"], "max_pending_handshakes");
    drop(silent);
    flows.into_iter().for_each(|flow| setup.end_flow_among_others(flow));
}

impl Setup {
    /// Ends a flow among others whose records come in between.
    fn end_flow_among_others(&self, (client, backend): (TcpStream, TcpStream)) {
        shutdown_write(&client);
        shutdown_write(&backend);
        assert_eq!((read_all(&backend), read_all(&client)), (vec![], vec![]));
        self.agent.next_record_for("a.test");
    }
}

#[test]
fn accept_rate_is_a_token_bucket() {
    let setup = Setup::new(&["--accept-rate", "3"]);
    let begun = Instant::now();
    let reasons: Vec<Value> = (0..20)
        .map(|_| {
            let client = connect(&setup.lab, agent::address());
            shutdown_write(&client);
            read_all(&client);
            setup.agent.next_record()["reason"].clone()
        })
        .collect();
    let rejected = reasons.iter().filter(|reason| **reason == "accept_rate").count();
    let accepted = reasons.iter().filter(|reason| reason.is_null()).count();
    assert_eq!(rejected + accepted, reasons.len(), "{reasons:?}");
    // As many as the bucket holds, and those for which it has been filled again meanwhile.
    let most = 3 + (begun.elapsed().as_secs_f64() * 3.0) as usize;
    assert!((3..=most).contains(&accepted), "{accepted} of {most}: {reasons:?}");
    wait_until("a token", || {
        let client = connect(&setup.lab, agent::address());
        shutdown_write(&client);
        read_all(&client);
        setup.agent.next_record()["reason"].is_null().then_some(())
    });
}

/// A route that leads back to the agent is cut at the first turn.
#[test]
fn a_connection_loop_is_rejected() {
    let setup = Setup::new(&["--route", "loop.test=10.91.1.1:443"]);
    let client = connect(&setup.lab, agent::address());
    write(&client, &ClientHello::new().sni(b"loop.test").encode());
    shutdown_write(&client);
    assert_eq!(read_all(&client), INTERNAL_ERROR_ALERT);
    let mut records = [setup.agent.next_record(), setup.agent.next_record()];
    records.sort_by_key(|record| record["reason"] != "loop");
    let [inner, outer] = records;
    assert_eq!(inner["reason"], "loop", "{inner}");
    assert_eq!(outer["outcome"], "closed", "{outer}");
    assert!(outer["client"].as_str().unwrap().starts_with("10.91.1.2:"), "{outer}");
}

#[test]
fn backends_outside_the_allowed_networks_are_not_connected() {
    let setup = Setup::new(&["--backends-allowed", "192.0.2.0/24"]);
    setup.listener.set_nonblocking(true).unwrap();
    let client = connect(&setup.lab, agent::address());
    write(&client, &client_hello().encode());
    assert_eq!(read_all(&client), INTERNAL_ERROR_ALERT);
    assert_eq!(setup.agent.next_record()["reason"], "no_backend");
    assert_eq!(setup.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn an_idle_flow_is_reset_and_a_busy_one_is_not() {
    let setup = Setup::new(&["--idle-timeout", "1s"]);
    let (client, backend) = setup.open_flow(&client_hello());
    let begun = Instant::now();
    while begun.elapsed().as_millis() < 2_500 {
        write(&client, b"busy");
        assert_eq!(read_exact(&backend, 4), b"busy");
        snisplit_tests::wait::sleep_for(std::time::Duration::from_millis(50));
    }
    for side in [&client, &backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert_eq!(setup.agent.next_record()["outcome"], "idle_timeout");
}
