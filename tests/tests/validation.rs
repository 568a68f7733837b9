//! Validations of an order of the agent. The CA is paused, and the test validates in its place.

use std::io::ErrorKind;
use std::process::Command;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::Lab;
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::nginx_plain;
use snisplit_tests::stream::{connect, read_to_end_or_error};
use snisplit_tests::tls::{
    Chunking, client_connection, handshake_and_read_to_end, send_client_hello,
};
use snisplit_tests::wait::wait_until;

const ACME: &[&str] = &["acme-tls/1"];

struct Setup {
    agent: Agent,
    lab: Lab,
}

impl Setup {
    /// Connects as a validation does. Returns the certificate that the agent answers with.
    fn validate(&self, name: &str, alpn: &[&str], chunking: Chunking) -> std::io::Result<Vec<u8>> {
        let stream = connect(&self.lab, agent::address());
        let mut tls = client_connection(name, alpn);
        send_client_hello(&mut tls, &stream, chunking);
        let output = handshake_and_read_to_end(&mut tls, &stream)?;
        assert_eq!(output, b"", "no application data");
        assert_eq!(tls.alpn_protocol(), Some(&b"acme-tls/1"[..]));
        Ok(tls.peer_certificates().unwrap()[0].to_vec())
    }

    /// Output of `openssl x509 -text`.
    fn certificate_text(&self, der: &[u8]) -> String {
        let file = self.lab.dir().join("challenge.der");
        std::fs::write(&file, der).unwrap();
        let mut command = Command::new("openssl");
        command.args(["x509", "-inform", "der", "-noout", "-text", "-in"]).arg(file);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// Opens a validation and does not complete the handshake.
    fn assert_unfinished_validation_is_reset(&self) {
        let stream = connect(&self.lab, agent::address());
        let mut tls = client_connection("front.test", ACME);
        send_client_hello(&mut tls, &stream, Chunking::Whole);
        let (received, end) = read_to_end_or_error(&stream);
        assert!(received.starts_with(&[22, 3, 3]), "no ServerHello: {received:?}");
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        let record = self.agent.next_record_for("front.test");
        assert_eq!(record["outcome"], "handshake_failed", "{record}");
        assert!(record["duration_seconds"].as_f64().unwrap() < 4.0, "{record}");
    }

    #[track_caller]
    fn assert_rejected(&self, name: &str, alpn: &[&str], chunking: Chunking, reason: &str) {
        let error = self.validate(name, alpn, chunking).unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        let record = loop {
            let record = self.agent.next_record_for(name);
            if record["outcome"] == "rejected" && record["alpn"] == serde_json::json!(alpn) {
                break record;
            }
        };
        assert_eq!(record["reason"], reason, "{record}");
    }
}

#[test]
fn a_validation_is_answered_only_for_its_exact_name_and_alpn() {
    let lab = Lab::new();
    let _backend = nginx_plain(&lab, 8080, "plain nginx here");
    let pebble = Pebble::start(&lab);
    pebble.pause_validation();
    let acme = pebble::acme_flags(&lab);
    let mut flags: Vec<&str> = acme.iter().map(String::as_str).collect();
    flags.extend(["--terminate", "front.test=10.91.2.2:8080", "--route", "*=10.91.2.2:8004"]);
    let agent = Agent::start(&lab, &flags).allow_warnings();
    let setup = Setup { agent, lab };
    let failed_orders = || setup.agent.log().matches("WARN certificate order failed").count();
    let renew = || {
        std::fs::write(pebble::certificate_dir(&setup.lab, "front.test").join("renew"), "").unwrap()
    };
    // An order lasts while the CA waits for its name server, which is two seconds. Those of the first order are nearly over
    // when the agent is ready, so the test uses the second one.
    wait_until("the first order to fail", || (failed_orders() == 1).then_some(()));
    renew();
    let certificate = wait_until("an order in progress", || {
        setup.validate("front.test", ACME, Chunking::Whole).ok()
    });
    let text = setup.certificate_text(&certificate);
    assert!(text.contains("1.3.6.1.5.5.7.1.31: critical"), "{text}");
    assert!(text.contains("DNS:front.test\n"), "{text}");
    while setup.agent.next_record_for("front.test")["outcome"] != "challenge_answered" {}

    for chunking in [Chunking::BytePerSegment, Chunking::ShortRecords] {
        assert_eq!(
            setup.validate("front.test", ACME, chunking).unwrap(),
            certificate,
            "{chunking:?}"
        );
        assert_eq!(setup.agent.next_record_for("front.test")["outcome"], "challenge_answered");
        // Any other ALPN list is no validation, and the name has no certificate yet.
        setup.assert_rejected("front.test", &["h2", "acme-tls/1"], chunking, "no_certificate");
        setup.assert_rejected("front.test", &["acme-tls/1", "h2"], chunking, "no_certificate");
        setup.assert_rejected("sub.front.test", ACME, chunking, "catch_all");
    }
    setup.assert_unfinished_validation_is_reset();
    // The paused CA fails the order. Resumed, it completes the next one.
    wait_until("the second order to fail", || (failed_orders() == 2).then_some(()));
    pebble.resume_validation();
    renew();
    pebble.wait_for_certificate(&setup.lab, "front.test");
    setup.assert_rejected("front.test", ACME, Chunking::ShortRecords, "no_challenge_pending");
}
