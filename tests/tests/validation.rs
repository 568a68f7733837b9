//! A validation of an order of ours, while it is under way: the CA is held up, and we are the CA.

use std::io::ErrorKind;
use std::process::Command;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::Lab;
use snisplit_tests::pebble::{self, Pebble};
use snisplit_tests::peer::nginx_plain;
use snisplit_tests::stream::{connect, ending};
use snisplit_tests::tls::{Cut, client, finish, greet};
use snisplit_tests::wait::until;

const ACME: &[&str] = &["acme-tls/1"];

struct Scene {
    agent: Agent,
    lab: Lab,
}

impl Scene {
    /// The certificate that a validation of this name is answered with, or the TLS error, and what
    /// the server says behind it.
    fn validate(&self, name: &str, alpn: &[&str], cut: Cut) -> std::io::Result<Vec<u8>> {
        let stream = connect(&self.lab, agent::address());
        let mut tls = client(name, alpn);
        greet(&mut tls, &stream, cut);
        let said = finish(&mut tls, &stream)?;
        assert_eq!(said, b"", "no application data");
        assert_eq!(tls.alpn_protocol(), Some(&b"acme-tls/1"[..]));
        Ok(tls.peer_certificates().unwrap()[0].to_vec())
    }

    /// What openssl says of it.
    fn print(&self, der: &[u8]) -> String {
        let file = self.lab.folder().join("challenge.der");
        std::fs::write(&file, der).unwrap();
        let mut command = Command::new("openssl");
        command.args(["x509", "-inform", "der", "-noout", "-text", "-in"]).arg(file);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// A validation that is opened and not finished.
    fn who_stays_is_cut_off(&self) {
        let stream = connect(&self.lab, agent::address());
        let mut tls = client("front.test", ACME);
        greet(&mut tls, &stream, Cut::Whole);
        let (flight, end) = ending(&stream);
        assert!(flight.starts_with(&[22, 3, 3]), "the server's flight");
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        let record = self.agent.record_of("front.test");
        assert_eq!(record["outcome"], "handshake_failed", "{record}");
        assert!(record["duration"].as_f64().unwrap() < 4.0, "{record}");
    }

    #[track_caller]
    fn refused(&self, name: &str, alpn: &[&str], cut: Cut, reason: &str) {
        let error = self.validate(name, alpn, cut).unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        let record = loop {
            let record = self.agent.record_of(name);
            if record["outcome"] == "refused" && record["alpn"] == serde_json::json!(alpn) {
                break record;
            }
        };
        assert_eq!(record["reason"], reason, "{record}");
    }
}

#[test]
fn exactly_this_name_and_this_protocol_in_any_cut() {
    let lab = Lab::new();
    let _behind = nginx_plain(&lab, 8080, "plain nginx here");
    let pebble = Pebble::start(&lab);
    pebble.hold_up();
    let acme = pebble::flags(&lab);
    let mut flags: Vec<&str> = acme.iter().map(String::as_str).collect();
    flags.extend(["--terminate", "front.test=10.91.2.2:8080", "--route", "*=10.91.2.2:8004"]);
    let agent = Agent::start(&lab, &flags).may_warn();
    let scene = Scene { agent, lab };
    let refusals = || scene.agent.log().matches("WARN no certificate").count();
    let renew =
        || std::fs::write(pebble::folder(&scene.lab, "front.test").join("renew"), "").unwrap();
    // An order lasts as long as the CA waits for its name server, two seconds; the first one's are nearly over
    // once the agent has tried its engines.
    until("the first refusal", || (refusals() == 1).then_some(()));
    renew();
    let certificate = until("the order", || scene.validate("front.test", ACME, Cut::Whole).ok());
    let text = scene.print(&certificate);
    assert!(text.contains("1.3.6.1.5.5.7.1.31: critical"), "{text}");
    assert!(text.contains("DNS:front.test\n"), "{text}");
    while scene.agent.record_of("front.test")["outcome"] != "answered" {}

    for cut in [Cut::Segments, Cut::Records] {
        assert_eq!(scene.validate("front.test", ACME, cut).unwrap(), certificate, "{cut:?}");
        assert_eq!(scene.agent.record_of("front.test")["outcome"], "answered");
        // Any other list is ordinary traffic, to a name that has no certificate yet.
        scene.refused("front.test", &["h2", "acme-tls/1"], cut, "no_certificate");
        scene.refused("front.test", &["acme-tls/1", "h2"], cut, "no_certificate");
        scene.refused("sub.front.test", ACME, cut, "catch_all");
    }
    scene.who_stays_is_cut_off();
    // Held up like this, the CA says no; asked again, it says yes.
    until("the refusal", || (refusals() == 2).then_some(()));
    pebble.let_go();
    renew();
    pebble.comes_to_vouch(&scene.lab, "front.test");
    scene.refused("front.test", ACME, Cut::Records, "no_challenge_pending");
}
