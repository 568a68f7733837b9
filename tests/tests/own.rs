//! Certificates of our own, from a real CA: ordered, served, renewed.

use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{Agent, binary};
use snisplit_tests::ari::Ari;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::pebble::{self, Pebble, Terms, admin, status};
use snisplit_tests::peer::{Peer, nginx_plain, openssl, s_client, written};
use snisplit_tests::wait::{until, until_within};

const FRONT: [&str; 2] = ["--terminate", "front.test,www.front.test=10.91.2.2:8080"];

/// A lab with a plaintext server behind `front.test`.
fn lab() -> (Lab, Peer) {
    let lab = Lab::new();
    let behind = nginx_plain(&lab, 8080, "plain nginx here");
    (lab, behind)
}

/// An agent that orders from Pebble and is told this besides.
fn agent(lab: &Lab, flags: &[&str]) -> Agent {
    let acme = pebble::flags(lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    Agent::start(lab, &[&acme[..], flags].concat())
}

/// `snisplit certs` with the same flags.
fn certs(lab: &Lab, words: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("certs").args(words).args(["--listen", "[::]:443"]).args(FRONT);
    command.args(pebble::flags(lab)).output().unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out).into_owned()).concat()
}

#[test]
fn one_certificate_for_all_names_of_an_entry() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    let agent = agent(&lab, &FRONT);
    let www = pebble.comes_to_vouch(&lab, "www.front.test");
    assert_eq!(pebble.vouches(&lab, "front.test").unwrap(), www);
    assert_eq!((pebble.count("accounts"), pebble.count("orders")), (1, 1));
    let name = "snisplit_acme_decisions_total{class=\"own\",decision=\"terminate\",\
                reason=\"challenge_pending\"}";
    assert!(agent.metric(&lab, name) >= 2.0);
    // It is on disk, so the next agent asks nobody.
    drop(agent);
    let _agent = self::agent(&lab, &FRONT);
    assert_eq!(pebble.vouches(&lab, "front.test").unwrap(), www);
    assert_eq!((pebble.count("accounts"), pebble.count("orders")), (1, 1));
    assert_eq!(admin(&lab, "/readyz"), ("ok\n".into(), 200));
}

/// Passthrough works without a CA; a name without a certificate is refused, never lied about.
#[test]
fn certificates_come_when_they_can() {
    let (lab, _behind) = lab();
    let flags = [&FRONT[..], &["--route", "a.test=10.91.2.2:8001"]].concat();
    let agent = agent(&lab, &flags).may_warn();
    let _tenant = openssl(&lab, backend(8001), "a.test", &["-rev"]);
    let said = s_client(&lab, "a.test", "stressed\nCLOSE\n", &["-quiet"]);
    assert!(said.contains("desserts"), "{said}");
    let said = s_client(&lab, "front.test", "", &[]);
    assert!(said.contains("alert number 112"), "{said}");
    assert_eq!(agent.record_of("front.test")["reason"], "no_certificate");
    assert_eq!(admin(&lab, "/readyz"), ("no certificate yet: front.test\n".into(), 503));
    assert_eq!(admin(&lab, "/healthz").1, 200);
    until("the failure", || (agent.logged("WARN no certificate") == 1).then_some(()));
    let listed = text(&certs(&lab, &[]));
    assert!(
        listed.contains("there is none yet") && !listed.contains("last error   none"),
        "{listed}"
    );
    let pebble = Pebble::start(&lab);
    pebble.comes_to_vouch(&lab, "front.test");
    assert_eq!(admin(&lab, "/readyz").1, 200);
}

#[test]
fn certs_says_what_there_is_and_renew_renews() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    let _agent = agent(&lab, &FRONT);
    let before = pebble.comes_to_vouch(&lab, "front.test");
    let listed = until("the status", || {
        let listed = text(&certs(&lab, &[]));
        listed.contains("next order").then_some(listed)
    });
    for words in ["front.test www.front.test", "by           tls-alpn-01", "Pebble Intermediate CA"]
    {
        assert!(listed.contains(words), "{listed}");
    }
    assert!(listed.contains("last error   none"), "{listed}");
    let unknown = certs(&lab, &["renew", "other.test"]);
    assert!(text(&unknown).contains("no [[terminate]] has \"other.test\""), "{unknown:?}");
    let asked = certs(&lab, &["renew", "www.front.test"]);
    assert!(asked.status.success(), "{asked:?}");
    until("a new certificate", || {
        (pebble.vouches(&lab, "front.test").ok()? != before).then_some(())
    });
    assert_eq!(pebble.count("accounts"), 1);
}

/// Certificates of 30 seconds, renewed with a third left, without a moment of doubt for clients.
#[test]
fn short_lived_certificates_are_renewed_in_time() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start_with(&lab, Terms { validity: 30, ..Terms::default() });
    let _agent = agent(&lab, &FRONT);
    let mut last = pebble.comes_to_vouch(&lab, "front.test");
    for _ in 0..2 {
        last = until_within(Duration::from_secs(40), "a renewal", || {
            let now = pebble.vouches(&lab, "front.test").expect("no moment without");
            (now != last).then_some(now)
        });
    }
    assert_eq!((pebble.count("accounts"), pebble.count("orders")), (1, 3));
}

/// nginx before Pebble, which adds renewal information (RFC 9773) to a CA that has none: the window
/// is in the past, as for a certificate that is about to be revoked. By its lifetime of 300 s it
/// would be renewed after 200.
#[test]
fn the_cas_wish_is_asked_for_and_obeyed() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start_with(&lab, Terms { validity: 300, ..Terms::default() });
    let ari = Ari::start(&lab, &pebble);
    let acme = pebble::flags(&lab);
    let directory = |word: &'_ String| match word.ends_with("/dir") {
        true => ari.directory().to_owned(),
        false => word.clone(),
    };
    let acme: Vec<String> = acme.iter().map(directory).collect();
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    let _agent = Agent::start(&lab, &[&acme[..], &FRONT].concat());
    let first = pebble.comes_to_vouch(&lab, "front.test");
    let second = until("a renewal that the CA wishes", || {
        let now = pebble.vouches(&lab, "front.test").unwrap();
        (now != first).then_some(now)
    });
    assert_ne!(first, second);
    let asked = ari.asked();
    let serial = first.print(&lab, &["-serial"]);
    assert!(asked.starts_with("/ari/") && asked.contains('.'), "{asked} for {serial}");
}

/// A nonce that is refused is no refusal, however often in a row (RFC 8555 §6.5). Of eight orders at
/// this rate most runs have one whose request is refused three times, which is where the library ends.
#[test]
fn a_bad_nonce_is_no_refusal() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start_with(&lab, Terms { bad_nonces: 30, ..Terms::default() });
    let names: Vec<String> = (0..8).map(|n| format!("n{n}.test")).collect();
    let fronts =
        names.iter().flat_map(|name| ["--terminate".into(), format!("{name}=10.91.2.2:8080")]);
    let fronts: Vec<String> = fronts.collect();
    // It would say so if an order had failed, and that is not what is expected here.
    let _agent = agent(&lab, &fronts.iter().map(String::as_str).collect::<Vec<_>>());
    names.iter().for_each(|name| _ = pebble.comes_to_vouch(&lab, name));
    assert_eq!((pebble.count("accounts"), pebble.count("orders")), (1, names.len()));
}

#[test]
fn accounts_that_must_be_bound_are_bound() {
    let (lab, _behind) = lab();
    let secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let terms = Terms { eab: Some(("kid-1", secret)), ..Terms::default() };
    let pebble = Pebble::start_with(&lab, terms);
    let config = |hmac: &str| {
        format!(
            "[[listener]]\naddress = \"0.0.0.0:443\"\n\
             [[terminate]]\nsni = [\"front.test\"]\nbackends = [\"10.91.2.2:8080\"]\n\
             [acme]\ndirectory = \"{}\"\nca_file = \"{}\"\nstate_dir = \"{}/state\"\n\
             eab_kid = \"kid-1\"\neab_hmac = \"{hmac}\"\n",
            pebble.directory(),
            pebble.ca_file().display(),
            lab.folder().display()
        )
    };
    // A wrong key is refused and said so; the right one, by reload, is taken at once.
    let file = written(&lab, "snisplit.toml", &config("d3Jvbmcga2V5IHRoYXQgbm9ib2R5IGtub3dz"));
    let agent = Agent::start_from(&lab, &file, &[]).may_warn();
    until("the refusal", || (agent.logged("WARN no certificate") >= 1).then_some(()));
    std::fs::write(&file, config(secret)).unwrap();
    let refused = pebble::folder(&lab, "front.test").join("status.json");
    until("the refusal to be on disk", || std::fs::remove_file(&refused).ok());
    agent.signal(Signal::HUP);
    pebble.comes_to_vouch(&lab, "front.test");
    assert_eq!(pebble.count("accounts"), 1);
}

/// A CA that says no is not asked again at once, also not by the next agent.
#[test]
fn refusals_back_off_and_survive_a_restart() {
    let (lab, _behind) = lab();
    let pebble = Pebble::start(&lab);
    // Only HTTP-01 is offered for a port that the agent does not listen on as the CA sees it.
    let front = "front.test=10.91.2.2:8080;challenge=http-01";
    let flags = ["--terminate", front, "--http", "127.0.0.1:80"];
    let first = agent(&lab, &flags).may_warn();
    until("the refusal", || (first.logged("WARN no certificate") == 1).then_some(()));
    assert!(first.log().contains("acme:error:connection"), "the CA's own words: {}", first.log());
    let failed = until("the status", || {
        status(&lab, "front.test").filter(|status| !status["failure"].is_null())
    });
    assert_eq!(failed["failure"]["count"], 1);
    assert!(failed["next"].as_u64().unwrap() >= failed["failure"]["at"].as_u64().unwrap() + 120);
    drop(first);
    let orders = pebble.count("orders");
    let second = agent(&lab, &flags).may_warn();
    assert!(second.record_within(Duration::from_secs(2)).is_none());
    assert_eq!((pebble.count("orders"), second.logged("ordering")), (orders, 0));
}
