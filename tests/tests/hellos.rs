//! Hellos of every kind and cut: who gets them, and whether each byte arrives as it was sent.
//!
//! The rows are those of `notes/peers.md` §3 and `notes/traefik.md` §5, where HAProxy, nginx, sslh,
//! sniproxy or Traefik go wrong.

use std::io::Write as _;
use std::net::TcpListener;

use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::hello::{Hello, recorded, records};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{accept, connect, finish, listen, read_all, write};
use snisplit_tests::wait::until;

/// An agent before two back ends: `a` owns `a.test`, `other` has the default route.
struct Split {
    a: TcpListener,
    other: TcpListener,
    agent: Agent,
    lab: Lab,
}

impl Split {
    fn new(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let routes = ["--route", "a.test=10.91.2.2:8001", "--route", "*=10.91.2.2:8002"];
        let agent = Agent::start(&lab, &[&routes[..], flags].concat());
        let (a, other) = (listen(&lab, backend(8001)), listen(&lab, backend(8002)));
        Self { a, other, agent, lab }
    }

    /// Sends the parts, each in a segment of its own, and checks who got exactly those bytes.
    #[track_caller]
    fn check<'p>(&self, parts: impl IntoIterator<Item = &'p [u8]>, to: To) -> Value {
        let client = connect(&self.lab, agent::address());
        let mut sent: Vec<u8> = Vec::new();
        for part in parts {
            write(&client, part);
            sent.extend(part);
        }
        finish(&client);
        match to {
            To::A | To::Other => {
                let backend = accept(if to == To::A { &self.a } else { &self.other });
                assert_eq!(read_all(&backend), sent, "not what was sent");
                drop(backend);
                assert_eq!(read_all(&client), b"");
            }
            To::Alert(code) => assert_eq!(read_all(&client), [21, 3, 3, 0, 2, 2, code]),
        }
        let record = self.agent.record();
        if to == To::A {
            assert_eq!((&record["route"], &record["sni"]), (&"a.test".into(), &"a.test".into()));
        }
        record
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    A,
    Other,
    Alert(u8),
}

fn one(bytes: &[u8]) -> [&[u8]; 1] {
    [bytes]
}

#[test]
fn greetings_of_real_clients_however_they_are_cut() {
    let split = Split::new(&[]);
    let greetings = recorded();
    assert!(greetings.len() >= 8, "the recorded greetings are gone");
    for greeting in greetings {
        let bytes = &greeting.bytes[..];
        let record = split.check(one(bytes), To::A);
        assert!(record["hello_bytes"].as_u64().unwrap() <= bytes.len() as u64);
        split.check(bytes.split_inclusive(|b| b % 7 == 0), To::A);
        split.check(bytes.split_at_checked(1).map(|(first, rest)| [first, rest]).unwrap(), To::A);
        // The same message in other records, as RFC 8446 §5.1 allows.
        let message = one_message(bytes);
        for size in [1, 32, 100] {
            let cut = records(&message, size);
            let record = split.check(one(&cut), To::A);
            assert_eq!(record["hello_records"], message.len().div_ceil(size), "{greeting:?}");
        }
    }
}

/// The handshake message of a recorded greeting.
fn one_message(bytes: &[u8]) -> Vec<u8> {
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
    let split = Split::new(&[]);
    let plain = Hello::new().sni(b"a.test").alpn(&["h2", "http/1.1"]);
    let whole = plain.bytes();
    split.check(whole.chunks(1), To::A);
    split.check(one(&plain.records(1)), To::A);
    split.check(plain.records(1).chunks(1), To::A);
    let inside_the_name = whole.windows(6).position(|w| w == b"a.test").unwrap() + 3 - 5;
    split.check(one(&plain.records(inside_the_name)), To::A);
    split.check(one(&plain.records(32)), To::A);
}

#[test]
fn hellos_up_to_64_kib() {
    let split = Split::new(&[]);
    for size in [1_800, 12_000, 16_000, 40_000, 65_536] {
        // The name comes last, behind everything else.
        let hello = Hello::new().padded(size - 15).sni(b"a.test");
        assert_eq!(hello.message().len() - 4, size);
        split.check(one(&hello.bytes()), To::A);
        split.check(hello.bytes().chunks(1_400), To::A);
    }
    let longest = Hello::new().sni(b"a.test").padded(65_536);
    split.check(one(&longest.records(1)), To::A);
    let too_long = Hello::new().sni(b"a.test").padded(65_537);
    let record = split.check(one(&too_long.bytes()), To::Alert(50));
    assert_eq!(record["reason"], "hello_too_long");
}

#[test]
fn bytes_behind_the_hello_are_kept() {
    let split = Split::new(&[]);
    let hello = Hello::new().sni(b"a.test").extension(42, b"").bytes();
    let early: Vec<u8> = [&[23, 3, 3, 64, 0][..], &[0xab; 16_384]].concat();
    split.check(one(&[&hello[..], &early].concat()), To::A);
    split.check([&hello[..], &early, &early], To::A);
}

#[test]
fn names_are_compared_as_names() {
    let split = Split::new(&[]);
    let named = |name: &[u8]| Hello::new().sni(name).bytes();
    split.check(one(&named(b"A.TesT")), To::A);
    split.check(one(&named(b"b.test")), To::Other);
    split.check(one(&named(b"x.a.test")), To::Other);
    split.check(one(&Hello::new().bytes()), To::Other);
    for bad in [&b"a.test."[..], b"", b"a.test\0.evil.test", b"10.91.1.1", "ä.test".as_bytes()] {
        let record = split.check(one(&named(bad)), To::Alert(112));
        assert_eq!(record["reason"], "bad_server_name");
    }
}

#[test]
fn acme_validations_go_to_the_owner_and_nobody_else() {
    let split = Split::new(&[]);
    let validation = |name: &[u8]| Hello::new().sni(name).alpn(&["acme-tls/1"]);
    for cut in [validation(b"a.test").bytes(), validation(b"a.test").records(1)] {
        assert_eq!(split.check(one(&cut), To::A)["reason"], "owner");
        split.check(cut.chunks(1), To::A);
    }
    let hijack = validation(b"b.test");
    assert_eq!(split.check(one(&hijack.bytes()), To::Alert(112))["reason"], "catch_all");
    split.check(one(&hijack.records(1)), To::Alert(112));
    split.check(one(&Hello::new().alpn(&["acme-tls/1"]).bytes()), To::Alert(112));
    for mixed in [&["h2", "acme-tls/1"][..], &["acme-tls/1", "h2"], &["ACME-TLS/1"]] {
        split.check(one(&Hello::new().sni(b"a.test").alpn(mixed).bytes()), To::A);
        split.check(one(&Hello::new().sni(b"b.test").alpn(mixed).bytes()), To::Other);
    }
    let counted =
        "snisplit_acme_decisions_total{class=\"default\",decision=\"refuse\",reason=\"catch_all\"}";
    assert_eq!(split.agent.metric(&split.lab, counted), 2.0);
    let told =
        "ACME validation sni=\"b.test\" class=\"default\" decision=\"refuse\" reason=\"catch_all\"";
    assert!(split.agent.log().contains(told), "{}", split.agent.log());
}

#[test]
fn what_is_no_hello_gets_an_alert_and_a_counter() {
    let split = Split::new(&[]);
    let hello = Hello::new().sni(b"a.test").bytes();
    let twice = Hello::new().sni(b"a.test").sni(b"b.test").bytes();
    let mut broken = hello.clone();
    broken[44] = 0xff;
    let rows: [(&[u8], u8, &str); 7] = [
        (b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", 10, "not_tls"),
        (b"SSH-2.0-x\r\n", 10, "not_tls"),
        (b"\x80\x2e\x01\x03\x01", 10, "not_tls"),
        (b"\x16\x03\x01\xff\xff", 22, "bad_record"),
        (b"\x16\x03\x01\x00\x04\x0e\x00\x00\x00", 10, "unexpected_message"),
        (&twice, 47, "duplicate_extension"),
        (&broken, 50, "malformed_hello"),
    ];
    for (bytes, alert, reason) in rows {
        assert_eq!(split.check(one(bytes), To::Alert(alert))["reason"], reason);
        let counted = format!("snisplit_refused_total{{reason=\"{reason}\"}}");
        assert!(split.agent.metric(&split.lab, &counted) >= 1.0, "{reason}");
    }
}

#[test]
fn the_deadline_is_absolute_and_waiting_costs_nothing() {
    let split = Split::new(&["--hello-timeout", "1s"]);
    let silent = connect(&split.lab, agent::address());
    assert_eq!(read_all(&silent), [21, 3, 3, 0, 2, 2, 40]);
    drop(silent);
    assert_eq!(split.agent.record()["reason"], "silent");

    let before = split.agent.cpu();
    let dripping = connect(&split.lab, agent::address());
    let hello = Hello::new().sni(b"a.test").padded(4_000).bytes();
    let mut drops = hello.chunks(1);
    let record = until("the deadline in spite of the drops", || {
        // Behind the deadline nobody takes it.
        let _cut_off = (&dripping).write_all(drops.next().unwrap());
        split.agent.record_within(std::time::Duration::from_millis(5))
    });
    assert_eq!(record["reason"], "hello_timeout");
    assert!((0.9..4.0).contains(&record["duration"].as_f64().unwrap()), "{record}");

    let partial = connect(&split.lab, agent::address());
    write(&partial, &hello[..40]);
    assert_eq!(split.agent.record()["reason"], "hello_timeout");
    let spent = split.agent.cpu() - before;
    assert!(spent.as_millis() < 500, "{spent:?} of CPU for two seconds of waiting");
}

#[test]
fn a_client_that_leaves_early() {
    let split = Split::new(&[]);
    let leave = |bytes: &[u8]| {
        let client = connect(&split.lab, agent::address());
        write(&client, bytes);
        finish(&client);
        (read_all(&client), split.agent.record())
    };
    let (heard, record) = leave(b"");
    assert_eq!((heard, &record["outcome"]), (vec![], &"client_gone".into()));
    for part in [&b"\x16"[..], b"\x16\x03\x01\x02\x00\x01"] {
        let (heard, record) = leave(part);
        assert_eq!(heard, [21, 3, 3, 0, 2, 2, 50]);
        assert_eq!(record["reason"], "truncated_hello");
    }
}
