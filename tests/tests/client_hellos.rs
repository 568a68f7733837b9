//! ClientHellos of every kind, in any fragments: the back end that gets them gets every byte as it was sent.
//!
//! Each case is one that HAProxy, nginx, sslh, sniproxy or Traefik handles wrongly in some version.

use std::io::Write as _;
use std::net::TcpListener;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::{ClientHello, encode_records, recorded_client_hellos};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{accept, connect, listen, read_all, shutdown_write, write};
use snisplit_tests::wait::wait_until;

/// An agent with two back ends: `a` owns `a.test`, `other` has the catch-all route.
struct Setup {
    a: TcpListener,
    other: TcpListener,
    agent: Agent,
    lab: Lab,
}

impl Setup {
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let routes = ["--route", "a.test=10.91.2.2:8001", "--route", "*=10.91.2.2:8002"];
        let agent = Agent::start(&lab, &[&routes[..], flags].concat());
        let (a, other) = (listen(&lab, backend(8001)), listen(&lab, backend(8002)));
        Self { a, other, agent, lab }
    }

    /// Sends the parts, each in a segment of its own. Asserts that `to` gets exactly these bytes.
    #[track_caller]
    fn check<'p>(&self, parts: impl IntoIterator<Item = &'p [u8]>, to: Destination) -> Value {
        let client = connect(&self.lab, agent::address());
        let mut sent: Vec<u8> = Vec::new();
        for part in parts {
            write(&client, part);
            sent.extend(part);
        }
        shutdown_write(&client);
        match to {
            Destination::A | Destination::Other => {
                let backend = accept(if to == Destination::A { &self.a } else { &self.other });
                assert_eq!(read_all(&backend), sent, "other bytes than were sent");
                drop(backend);
                assert_eq!(read_all(&client), b"");
            }
            Destination::Alert(code) => assert_eq!(read_all(&client), [21, 3, 3, 0, 2, 2, code]),
        }
        let record = self.agent.next_record();
        if to == Destination::A {
            assert_eq!((&record["route"], &record["sni"]), (&"a.test".into(), &"a.test".into()));
        }
        record
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Destination {
    A,
    Other,
    Alert(u8),
}

fn unsplit(bytes: &[u8]) -> [&[u8]; 1] {
    [bytes]
}

#[test]
fn recorded_client_hellos_are_routed_in_any_chunking() {
    let setup = Setup::new(&[]);
    let recordings = recorded_client_hellos();
    assert!(recordings.len() >= 8, "recorded client hellos are missing");
    for recording in recordings {
        let bytes = &recording.bytes[..];
        let record = setup.check(unsplit(bytes), Destination::A);
        assert!(record["client_hello_bytes"].as_u64().unwrap() <= bytes.len() as u64);
        setup.check(bytes.split_inclusive(|b| b % 7 == 0), Destination::A);
        setup.check(
            bytes.split_at_checked(1).map(|(first, rest)| [first, rest]).unwrap(),
            Destination::A,
        );
        // The same message in shorter records, which RFC 8446 §5.1 allows.
        let message = handshake_message_of(bytes);
        for size in [8, 32, 100] {
            let fragmented = encode_records(&message, size);
            let record = setup.check(unsplit(&fragmented), Destination::A);
            assert_eq!(
                record["client_hello_records"],
                message.len().div_ceil(size),
                "{recording:?}"
            );
        }
    }
}

/// Handshake message of a recorded ClientHello, without record headers.
fn handshake_message_of(bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    let mut rest = bytes;
    while let [22, 3, _, high, low, behind @ ..] = rest {
        let (body, next) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend(body);
        rest = next;
    }
    message
}

#[test]
fn fragments_never_change_the_decision() {
    let setup = Setup::new(&[]);
    let plain = ClientHello::new().sni(b"a.test").alpn(&["h2", "http/1.1"]);
    let whole = plain.encode();
    setup.check(whole.chunks(1), Destination::A);
    setup.check(unsplit(&plain.fragmented(1)), Destination::A);
    setup.check(plain.fragmented(1).chunks(1), Destination::A);
    let inside_the_name = whole.windows(6).position(|w| w == b"a.test").unwrap() + 3 - 5;
    setup.check(unsplit(&plain.fragmented(inside_the_name)), Destination::A);
    setup.check(unsplit(&plain.fragmented(32)), Destination::A);
}

#[test]
fn client_hellos_up_to_64_kib_are_routed() {
    let setup = Setup::new(&[]);
    for size in [1_800, 12_000, 16_000, 40_000, 65_536] {
        // The server name is the last extension.
        let hello = ClientHello::new().padded_to(size - 15).sni(b"a.test");
        assert_eq!(hello.handshake_message().len() - 4, size);
        setup.check(unsplit(&hello.encode()), Destination::A);
        setup.check(hello.encode().chunks(1_400), Destination::A);
    }
    let longest = ClientHello::new().sni(b"a.test").padded_to(65_536);
    setup.check(unsplit(&longest.fragmented(64)), Destination::A);
    let too_long = ClientHello::new().sni(b"a.test").padded_to(65_537);
    let record = setup.check(unsplit(&too_long.encode()), Destination::Alert(50));
    assert_eq!(record["reason"], "client_hello_too_long");
}

#[test]
fn bytes_after_the_client_hello_are_forwarded() {
    let setup = Setup::new(&[]);
    let hello = ClientHello::new().sni(b"a.test").extension(42, b"").encode();
    let early: Vec<u8> = [&[23, 3, 3, 64, 0][..], &[0xab; 16_384]].concat();
    setup.check(unsplit(&[&hello[..], &early].concat()), Destination::A);
    setup.check([&hello[..], &early, &early], Destination::A);
}

#[test]
fn server_names_are_validated_and_compared_without_case() {
    let setup = Setup::new(&[]);
    let named = |name: &[u8]| ClientHello::new().sni(name).encode();
    setup.check(unsplit(&named(b"A.TesT")), Destination::A);
    setup.check(unsplit(&named(b"b.test")), Destination::Other);
    setup.check(unsplit(&named(b"x.a.test")), Destination::Other);
    setup.check(unsplit(&ClientHello::new().encode()), Destination::Other);
    for bad in [&b"a.test."[..], b"", b"a.test\0.evil.test", b"10.91.1.1", "ä.test".as_bytes()] {
        let record = setup.check(unsplit(&named(bad)), Destination::Alert(112));
        assert_eq!(record["reason"], "invalid_server_name");
    }
}

#[test]
fn acme_validations_go_to_the_owner_and_nobody_else() {
    let setup = Setup::new(&[]);
    let validation = |name: &[u8]| ClientHello::new().sni(name).alpn(&["acme-tls/1"]);
    for hello in [validation(b"a.test").encode(), validation(b"a.test").fragmented(1)] {
        assert_eq!(setup.check(unsplit(&hello), Destination::A)["reason"], "name_owner");
        setup.check(hello.chunks(1), Destination::A);
    }
    let hijack = validation(b"b.test");
    assert_eq!(
        setup.check(unsplit(&hijack.encode()), Destination::Alert(112))["reason"],
        "catch_all"
    );
    setup.check(unsplit(&hijack.fragmented(1)), Destination::Alert(112));
    setup.check(
        unsplit(&ClientHello::new().alpn(&["acme-tls/1"]).encode()),
        Destination::Alert(112),
    );
    for mixed in [&["h2", "acme-tls/1"][..], &["acme-tls/1", "h2"], &["ACME-TLS/1"]] {
        setup.check(
            unsplit(&ClientHello::new().sni(b"a.test").alpn(mixed).encode()),
            Destination::A,
        );
        setup.check(
            unsplit(&ClientHello::new().sni(b"b.test").alpn(mixed).encode()),
            Destination::Other,
        );
    }
    let counted = "snisplit_acme_validations_total{class=\"catch_all\",action=\"reject\",reason=\"catch_all\"}";
    assert_eq!(setup.agent.metric(&setup.lab, counted), 2.0);
    let message =
        "ACME validation sni=\"b.test\" class=\"catch_all\" action=\"reject\" reason=\"catch_all\"";
    assert!(setup.agent.log().contains(message), "{}", setup.agent.log());
}

#[test]
fn invalid_client_hellos_get_an_alert_and_a_counter() {
    let setup = Setup::new(&[]);
    let hello = ClientHello::new().sni(b"a.test").encode();
    let twice = ClientHello::new().sni(b"a.test").sni(b"b.test").encode();
    let mut broken = hello.clone();
    broken[44] = 0xff;
    let rows: [(&[u8], u8, &str); 7] = [
        (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 10, "not_tls"),
        (b"SSH-2.0-x\r\n", 10, "not_tls"),
        (b"\x80\x2e\x01\x03\x01", 10, "not_tls"),
        (b"\x16\x03\x01\xff\xff", 22, "invalid_record_length"),
        (b"\x16\x03\x01\x00\x04\x0e\x00\x00\x00", 10, "unexpected_message"),
        (&twice, 47, "duplicate_extension"),
        (&broken, 50, "malformed_client_hello"),
    ];
    for (bytes, alert, reason) in rows {
        assert_eq!(setup.check(unsplit(bytes), Destination::Alert(alert))["reason"], reason);
        let counted = format!("snisplit_connections_rejected_total{{reason=\"{reason}\"}}");
        assert!(setup.agent.metric(&setup.lab, &counted) >= 1.0, "{reason}");
    }
}

#[test]
fn the_client_hello_timeout_is_absolute_and_waiting_uses_no_cpu() {
    let setup = Setup::new(&["--client-hello-timeout", "1s"]);
    let silent = connect(&setup.lab, agent::address());
    assert_eq!(read_all(&silent), [21, 3, 3, 0, 2, 2, 40]);
    drop(silent);
    assert_eq!(setup.agent.next_record()["reason"], "no_data");

    let before = setup.agent.cpu_time();
    let dripping = connect(&setup.lab, agent::address());
    let hello = ClientHello::new().sni(b"a.test").padded_to(4_000).encode();
    let mut single_bytes = hello.chunks(1);
    let record = wait_until("the timeout while bytes arrive", || {
        // After the timeout, a write fails.
        let _rejected = (&dripping).write_all(single_bytes.next().unwrap());
        setup.agent.next_record_within(std::time::Duration::from_millis(5))
    });
    assert_eq!(record["reason"], "client_hello_timeout");
    assert!((0.9..4.0).contains(&record["duration_seconds"].as_f64().unwrap()), "{record}");

    let partial = connect(&setup.lab, agent::address());
    write(&partial, &hello[..40]);
    assert_eq!(setup.agent.next_record()["reason"], "client_hello_timeout");
    let spent = setup.agent.cpu_time() - before;
    assert!(spent.as_millis() < 500, "{spent:?} of CPU time in two seconds");
}

#[test]
fn a_client_that_closes_before_its_client_hello_is_complete() {
    let setup = Setup::new(&[]);
    let send_and_close = |bytes: &[u8]| {
        let client = connect(&setup.lab, agent::address());
        write(&client, bytes);
        shutdown_write(&client);
        (read_all(&client), setup.agent.next_record())
    };
    let (received, record) = send_and_close(b"");
    assert_eq!((received, &record["outcome"]), (vec![], &"client_closed".into()));
    for part in [&b"\x16"[..], b"\x16\x03\x01\x02\x00\x01"] {
        let (received, record) = send_and_close(part);
        assert_eq!(received, [21, 3, 3, 0, 2, 2, 50]);
        assert_eq!(record["reason"], "truncated_client_hello");
    }
}
