//! Limits: a connection above a limit is rejected with a reason, and connections within it are not affected.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::lab::{Lab, PROXY};
use snisplit_tests::stream::{
    accept, connect, read_all, read_exact, read_to_end_or_error, shutdown_write, write,
};
use snisplit_tests::testbed::{Peers, Testbed};
use snisplit_tests::wait::{sleep_for, wait_until};

const INTERNAL_ERROR_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// Tests that a connection is rejected for this reason. Returns its record.
#[track_caller]
fn assert_rejected(testbed: &Testbed, bytes: &[u8], reason: &str) -> Value {
    let client = connect(&testbed.lab, agent::address());
    // The agent may close the connection before the bytes arrive; a reset then overtakes the alert.
    let _closed_already = (&client).write_all(bytes);
    let (received, end) = read_to_end_or_error(&client);
    assert!(received == INTERNAL_ERROR_ALERT || end.is_err(), "{received:?}");
    let record = testbed.agent.next_record();
    assert_eq!(record["reason"], reason, "{record}");
    let rejected = format!("snisplit_connections_rejected_total{{reason=\"{reason}\"}}");
    assert!(testbed.agent.metric(&testbed.lab, &rejected) >= 1.0);
    record
}

/// Ends a flow, whose record is the next one.
#[track_caller]
fn end_flow(testbed: &Testbed, flow: &Peers) {
    flow.close();
    assert_eq!(testbed.agent.next_record()["outcome"], "closed");
}

fn client_hello() -> ClientHello {
    ClientHello::new().sni(b"a.test")
}

#[test]
fn max_connections_is_enforced_and_released() {
    let testbed = Testbed::new(&["--max-connections", "2"]);
    let (one, two) = (testbed.connect(), testbed.connect());
    assert_rejected(&testbed, b"", "max_connections");
    end_flow(&testbed, &one);
    let three = testbed.connect();
    assert_rejected(&testbed, b"", "max_connections");
    end_flow(&testbed, &two);
    end_flow(&testbed, &three);
}

#[test]
fn the_limit_per_source_excludes_validations() {
    let testbed = Testbed::new(&["--max-connections-per-source", "1"]);
    let flow = testbed.connect();
    assert_rejected(&testbed, &client_hello().encode(), "max_connections_per_source");
    let validation = client_hello().alpn(&["acme-tls/1"]);
    let validations = [(); 3].map(|()| testbed.connect_with(&validation));
    assert_rejected(&testbed, &client_hello().encode(), "max_connections_per_source");
    validations.iter().for_each(|validation| end_flow(&testbed, validation));
    end_flow(&testbed, &flow);
    end_flow(&testbed, &testbed.connect());
}

#[test]
fn pending_handshakes_have_a_limit_of_their_own() {
    let testbed =
        Testbed::new(&["--max-pending-handshakes", "3", "--max-connections-per-source", "100"]);
    let flows = [(); 5].map(|()| testbed.connect());
    // The agent rejects one of four silent connections; the scheduler decides which one.
    let silent = [(); 4].map(|()| connect(&testbed.lab, agent::address()));
    assert_eq!(testbed.agent.next_record()["reason"], "max_pending_handshakes");
    drop(silent);
    for flow in flows {
        flow.close();
        // The records of the silent connections come in between.
        assert_eq!(testbed.agent.next_record_for("a.test")["outcome"], "closed");
    }
}

#[test]
fn accept_rate_is_a_token_bucket() {
    let testbed = Testbed::new(&["--accept-rate", "3"]);
    let reason_of_one = || {
        let client = connect(&testbed.lab, agent::address());
        shutdown_write(&client);
        read_all(&client);
        testbed.agent.next_record()["reason"].clone()
    };
    let started = Instant::now();
    let reasons: Vec<Value> = (0..20).map(|_| reason_of_one()).collect();
    let rejected = reasons.iter().filter(|reason| **reason == "accept_rate").count();
    let accepted = reasons.iter().filter(|reason| reason.is_null()).count();
    assert_eq!(rejected + accepted, reasons.len(), "{reasons:?}");
    // The bucket holds 3 tokens, and gets 3 more in each second.
    let max = 3 + (started.elapsed().as_secs_f64() * 3.0) as usize;
    assert!((3..=max).contains(&accepted), "{accepted} of {max}: {reasons:?}");
    wait_until("a new token", || reason_of_one().is_null().then_some(()));
}

/// A route leads back to the agent. The agent rejects its own connection.
#[test]
fn a_connection_loop_is_rejected() {
    let testbed = Testbed::new(&["--route", "loop.test=10.91.1.1:443"]);
    let client = connect(&testbed.lab, agent::address());
    write(&client, &ClientHello::new().sni(b"loop.test").encode());
    shutdown_write(&client);
    assert_eq!(read_all(&client), INTERNAL_ERROR_ALERT);
    let mut records = [testbed.agent.next_record(), testbed.agent.next_record()];
    records.sort_by_key(|record| record["reason"] != "loop");
    let [inner, outer] = records;
    assert_eq!(inner["reason"], "loop", "{inner}");
    assert_eq!(outer["outcome"], "closed", "{outer}");
    assert!(outer["client"].as_str().unwrap().starts_with("10.91.1.2:"), "{outer}");
}

/// All connections of the agent's host have the same source port. A client on it differs from the agent's own
/// connection to a back end by its destination only.
#[test]
fn a_local_client_with_a_source_of_the_agent_is_no_loop() {
    let lab = Lab::new();
    let local = |port| SocketAddr::from((PROXY, port));
    let _agent = Agent::start(
        &lab,
        &["--route", "a.test=10.91.1.1:8001", "--route", "b.test=10.91.1.1:8002"],
    );
    let [first, second] =
        [8001, 8002].map(|port| lab.in_proxy(|| TcpListener::bind(local(port)).unwrap()));
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    lab.in_proxy(|| fs::write(range, "40000 40000")).unwrap();
    let _flow = Peers::connect(&lab, agent::address(), &first, &client_hello());
    let client = lab.in_proxy(|| TcpStream::connect(agent::address())).unwrap();
    assert_eq!(client.local_addr().unwrap(), local(40_000));
    let hello = ClientHello::new().sni(b"b.test").encode();
    write(&client, &hello);
    assert_eq!(read_exact(&accept(&second), hello.len()), hello);
}

#[test]
fn backends_outside_the_allowed_networks_are_not_connected() {
    let testbed = Testbed::new(&["--backends-allowed", "192.0.2.0/24"]);
    testbed.listener.set_nonblocking(true).unwrap();
    let client = connect(&testbed.lab, agent::address());
    write(&client, &client_hello().encode());
    assert_eq!(read_all(&client), INTERNAL_ERROR_ALERT);
    assert_eq!(testbed.agent.next_record()["reason"], "no_backend");
    assert_eq!(testbed.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn an_idle_flow_is_reset_and_a_busy_one_is_not() {
    let testbed = Testbed::new(&["--idle-timeout", "1s"]);
    let Peers { client, backend } = testbed.connect();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(2_500) {
        write(&client, b"busy");
        assert_eq!(read_exact(&backend, 4), b"busy");
        sleep_for(Duration::from_millis(50));
    }
    for side in [&client, &backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert_eq!(testbed.agent.next_record()["outcome"], "idle_timeout");
}
