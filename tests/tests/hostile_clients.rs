//! Clients that cost the agent as much as they can: it stays at rest, and rejects what no honest client sends.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use snisplit_tests::agent;
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::stream::{connect, read_to_end_or_error, write};
use snisplit_tests::testbed::{Peers, Testbed};
use snisplit_tests::wait::{sleep_for, wait_until};

const DECODE_ERROR_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];

/// The start of a hello whose record is 16 KiB long.
const UNFINISHED: [u8; 9] = [22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];

#[test]
fn a_hello_in_absurdly_many_records_is_rejected_at_once() {
    let testbed = Testbed::new(&["--client-hello-timeout", "60s"]);
    let message = [&[1, 0, 0x80, 0][..], &[0; 0x8000]].concat();
    let records: Vec<u8> = message.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    let client = connect(&testbed.lab, agent::address());
    // The agent may close while the bytes are on their way; a reset then overtakes the alert.
    let _closed_already = (&client).write_all(&records[..100_000]);
    let (received, end) = read_to_end_or_error(&client);
    assert!(received == DECODE_ERROR_ALERT || end.is_err(), "{received:?}");
    assert_eq!(testbed.agent.next_record()["reason"], "too_many_records");
    // A hello of at most 4 KiB on the wire is accepted in any records.
    let hello = ClientHello::new().sni(b"a.test").encode();
    let message = &hello[5..];
    assert!(message.len() * 6 < 4_096);
    let client = connect(&testbed.lab, agent::address());
    for byte in message {
        write(&client, &[22, 3, 1, 0, 1, *byte]);
    }
    let (backend, _) = testbed.listener.accept().unwrap();
    drop((client, backend));
    assert_eq!(testbed.agent.next_record()["route"], "a.test");
}

/// A client with part of a hello, in segments of one byte: their overhead fills the receive buffer, and the kernel
/// then ignores SO_RCVLOWAT (`tcp_rmem_pressure`).
fn send_tiny_segments(testbed: &Testbed) -> TcpStream {
    let client = connect(&testbed.lab, agent::address());
    write(&client, &UNFINISHED);
    (0..800).for_each(|_| write(&client, b"a"));
    client
}

#[test]
fn the_agent_is_idle_while_clients_with_an_unfinished_hello_are_silent() {
    const CLIENTS: usize = 100;
    const PERIOD: Duration = Duration::from_secs(3);
    let testbed = Testbed::new(&["--client-hello-timeout", "60s"]);
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| send_tiny_segments(&testbed)).collect();
    let accepted = "snisplit_connections_accepted_total";
    wait_until("all connections", || {
        (testbed.agent.metric(&testbed.lab, accepted) >= CLIENTS as f64).then_some(())
    });
    let mut before = testbed.agent.cpu_time();
    wait_until("the agent to be idle", || {
        sleep_for(PERIOD);
        let used = testbed.agent.cpu_time() - before;
        before += used;
        (used < PERIOD / 50).then_some(())
    });
    drop(clients);
}

/// RSS of an agent with 200 flows whose hellos offer these protocols, in bytes.
fn rss_with_flows(protocols: &[&str]) -> u64 {
    let hello = ClientHello::new().sni(b"a.test").alpn(protocols);
    let testbed = Testbed::new(&[]);
    let flows: Vec<Peers> = (0..200).map(|_| testbed.connect_with(&hello)).collect();
    let rss = testbed.agent.resident_bytes();
    for flow in flows {
        flow.close();
        let record = testbed.agent.next_record();
        let line_len = record.to_string().len();
        assert!(line_len < 4_096, "{line_len} bytes");
        let listed = record["alpn"].as_array().unwrap().len();
        let omitted = record["alpn_omitted"].as_u64().unwrap_or_default() as usize;
        assert_eq!(listed + omitted, protocols.len());
    }
    rss
}

#[test]
fn long_lists_of_protocols_are_neither_kept_nor_logged() {
    let ordinary = rss_with_flows(&["h2", "http/1.1"]);
    let long = rss_with_flows(&["h2"; 20_000]);
    assert!(long <= ordinary / 5 * 6, "{long} bytes, not {ordinary}");
}
