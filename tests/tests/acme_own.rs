//! Certificates of our own, from a real CA: ordered, served, renewed.

use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{Agent, binary_path};
use snisplit_tests::ari::AriProxy;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::pebble::{self, Pebble, PebbleConfig, admin_get, certificate_status};
use snisplit_tests::peer::{ServerProcess, nginx_plain, openssl, s_client, write_file};
use snisplit_tests::wait::{wait_until, wait_until_within};

const FRONT: [&str; 2] = ["--terminate", "front.test,www.front.test=10.91.2.2:8080"];

/// A lab with a plaintext server behind `front.test`.
fn create_lab() -> (Lab, ServerProcess) {
    let lab = Lab::new();
    let backend = nginx_plain(&lab, 8080, "plain nginx here");
    (lab, backend)
}

/// An agent that orders from Pebble and is told this besides.
fn start_agent(lab: &Lab, flags: &[&str]) -> Agent {
    let acme = pebble::acme_flags(lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    Agent::start(lab, &[&acme[..], flags].concat())
}

/// `snisplit certs` with the same flags.
fn run_certs(lab: &Lab, words: &[&str]) -> Output {
    let mut command = Command::new(binary_path());
    command.arg("certs").args(words).args(["--listen", "[::]:443"]).args(FRONT);
    command.args(pebble::acme_flags(lab)).output().unwrap()
}

fn output_text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out).into_owned()).concat()
}

#[test]
fn one_certificate_for_all_names_of_an_entry() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let agent = start_agent(&lab, &FRONT);
    let www = pebble.wait_for_certificate(&lab, "www.front.test");
    assert_eq!(pebble.served_certificate(&lab, "front.test").unwrap(), www);
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, 1));
    let name = "snisplit_acme_validations_total{class=\"managed\",action=\"terminate\",\
                reason=\"challenge_pending\"}";
    assert!(agent.metric(&lab, name) >= 2.0);
    // It is on disk, so the next agent asks nobody.
    drop(agent);
    let _agent = self::start_agent(&lab, &FRONT);
    assert_eq!(pebble.served_certificate(&lab, "front.test").unwrap(), www);
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, 1));
    assert_eq!(admin_get(&lab, "/readyz"), ("ok\n".into(), 200));
}

/// Passthrough works without a CA; a name without a certificate is refused, never lied about.
#[test]
fn passthrough_works_before_a_certificate_is_issued() {
    let (lab, _backend) = create_lab();
    let flags = [&FRONT[..], &["--route", "a.test=10.91.2.2:8001"]].concat();
    let agent = start_agent(&lab, &flags).allow_warnings();
    let _tenant = openssl(&lab, backend(8001), "a.test", &["-rev"]);
    let output = s_client(&lab, "a.test", "stressed\nCLOSE\n", &["-quiet"]);
    assert!(output.contains("desserts"), "{output}");
    let output = s_client(&lab, "front.test", "", &[]);
    assert!(output.contains("alert number 112"), "{output}");
    assert_eq!(agent.next_record_for("front.test")["reason"], "no_certificate");
    assert_eq!(admin_get(&lab, "/readyz"), ("no certificate yet: front.test\n".into(), 503));
    assert_eq!(admin_get(&lab, "/healthz").1, 200);
    wait_until("the failure", || (agent.log_count("WARN no certificate") == 1).then_some(()));
    let listed = output_text(&run_certs(&lab, &[]));
    assert!(
        listed.contains("there is none yet") && !listed.contains("last error   none"),
        "{listed}"
    );
    let pebble = Pebble::start(&lab);
    pebble.wait_for_certificate(&lab, "front.test");
    assert_eq!(admin_get(&lab, "/readyz").1, 200);
}

#[test]
fn certs_lists_certificates_and_renew_renews_one() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let _agent = start_agent(&lab, &FRONT);
    let before = pebble.wait_for_certificate(&lab, "front.test");
    let listed = wait_until("the status", || {
        let listed = output_text(&run_certs(&lab, &[]));
        listed.contains("next order").then_some(listed)
    });
    for words in ["front.test www.front.test", "by           tls-alpn-01", "Pebble Intermediate CA"]
    {
        assert!(listed.contains(words), "{listed}");
    }
    assert!(listed.contains("last error   none"), "{listed}");
    let unknown = run_certs(&lab, &["renew", "other.test"]);
    assert!(output_text(&unknown).contains("no [[terminate]] has \"other.test\""), "{unknown:?}");
    let asked = run_certs(&lab, &["renew", "www.front.test"]);
    assert!(asked.status.success(), "{asked:?}");
    wait_until("a new certificate", || {
        (pebble.served_certificate(&lab, "front.test").ok()? != before).then_some(())
    });
    assert_eq!(pebble.logged_count("accounts"), 1);
}

/// Certificates of 30 seconds, renewed with a third left, without a moment of doubt for clients.
#[test]
fn short_lived_certificates_are_renewed_in_time() {
    let (lab, _backend) = create_lab();
    let pebble =
        Pebble::start_with(&lab, PebbleConfig { validity_seconds: 30, ..PebbleConfig::default() });
    let _agent = start_agent(&lab, &FRONT);
    let mut last = pebble.wait_for_certificate(&lab, "front.test");
    for _ in 0..2 {
        last = wait_until_within(Duration::from_secs(40), "a renewal", || {
            let now = pebble.served_certificate(&lab, "front.test").expect("no moment without");
            (now != last).then_some(now)
        });
    }
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, 3));
}

/// nginx before Pebble, which adds renewal information (RFC 9773) to a CA that has none: the window
/// is in the past, as for a certificate that is about to be revoked. By its lifetime of 300 s it
/// would be renewed after 200.
#[test]
fn the_renewal_window_of_the_ca_is_followed() {
    let (lab, _backend) = create_lab();
    let pebble =
        Pebble::start_with(&lab, PebbleConfig { validity_seconds: 300, ..PebbleConfig::default() });
    let ari = AriProxy::start(&lab, &pebble);
    let acme = pebble::acme_flags(&lab);
    let directory = |word: &'_ String| match word.ends_with("/dir") {
        true => ari.directory().to_owned(),
        false => word.clone(),
    };
    let acme: Vec<String> = acme.iter().map(directory).collect();
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    let _agent = Agent::start(&lab, &[&acme[..], &FRONT].concat());
    let first = pebble.wait_for_certificate(&lab, "front.test");
    let second = wait_until("a renewal that the CA wishes", || {
        let now = pebble.served_certificate(&lab, "front.test").unwrap();
        (now != first).then_some(now)
    });
    assert_ne!(first, second);
    let asked = ari.first_renewal_info_path();
    let serial = first.x509_text(&lab, &["-serial"]);
    assert!(asked.starts_with("/ari/") && asked.contains('.'), "{asked} for {serial}");
}

/// A nonce that is refused is no refusal, however often in a row (RFC 8555 §6.5). Of eight orders at
/// this rate most runs have one whose request is refused three times, which is where the library ends.
#[test]
fn a_bad_nonce_is_retried() {
    let (lab, _backend) = create_lab();
    let pebble =
        Pebble::start_with(&lab, PebbleConfig { bad_nonce_percent: 30, ..PebbleConfig::default() });
    let names: Vec<String> = (0..8).map(|n| format!("n{n}.test")).collect();
    let fronts =
        names.iter().flat_map(|name| ["--terminate".into(), format!("{name}=10.91.2.2:8080")]);
    let fronts: Vec<String> = fronts.collect();
    // It would say so if an order had failed, and that is not what is expected here.
    let _agent = start_agent(&lab, &fronts.iter().map(String::as_str).collect::<Vec<_>>());
    names.iter().for_each(|name| _ = pebble.wait_for_certificate(&lab, name));
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, names.len()));
}

#[test]
fn an_account_is_created_with_external_binding() {
    let (lab, _backend) = create_lab();
    let secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let terms = PebbleConfig { eab: Some(("kid-1", secret)), ..PebbleConfig::default() };
    let pebble = Pebble::start_with(&lab, terms);
    let config = |hmac: &str| {
        format!(
            "[[listener]]\naddress = \"0.0.0.0:443\"\n\
             [[terminate]]\nsni = [\"front.test\"]\nbackends = [\"10.91.2.2:8080\"]\n\
             [acme]\ndirectory = \"{}\"\nca_file = \"{}\"\nstate_dir = \"{}/state\"\n\
             eab_kid = \"kid-1\"\neab_hmac = \"{hmac}\"\n",
            pebble.directory(),
            pebble.ca_file().display(),
            lab.dir().display()
        )
    };
    // A wrong key is refused and said so; the right one, by reload, is taken at once.
    let file = write_file(&lab, "snisplit.toml", &config("d3Jvbmcga2V5IHRoYXQgbm9ib2R5IGtub3dz"));
    let agent = Agent::start_with_config(&lab, &file, &[]).allow_warnings();
    wait_until("the refusal", || (agent.log_count("WARN no certificate") >= 1).then_some(()));
    std::fs::write(&file, config(secret)).unwrap();
    let refused = pebble::certificate_dir(&lab, "front.test").join("status.json");
    wait_until("the refusal to be on disk", || std::fs::remove_file(&refused).ok());
    agent.signal(Signal::HUP);
    pebble.wait_for_certificate(&lab, "front.test");
    assert_eq!(pebble.logged_count("accounts"), 1);
}

/// A CA that says no is not asked again at once, also not by the next agent.
#[test]
fn the_backoff_after_a_rejection_survives_a_restart() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    // Only HTTP-01 is offered for a port that the agent does not listen on as the CA sees it.
    let front = "front.test=10.91.2.2:8080;challenge=http-01";
    let flags = ["--terminate", front, "--http", "127.0.0.1:80"];
    let first = start_agent(&lab, &flags).allow_warnings();
    wait_until("the refusal", || (first.log_count("WARN no certificate") == 1).then_some(()));
    assert!(first.log().contains("acme:error:connection"), "the CA's own words: {}", first.log());
    let failed = wait_until("the status", || {
        certificate_status(&lab, "front.test").filter(|status| !status["failure"].is_null())
    });
    assert_eq!(failed["failure"]["count"], 1);
    assert!(failed["next"].as_u64().unwrap() >= failed["failure"]["at"].as_u64().unwrap() + 120);
    drop(first);
    let orders = pebble.logged_count("orders");
    let second = start_agent(&lab, &flags).allow_warnings();
    assert!(second.next_record_within(Duration::from_secs(2)).is_none());
    assert_eq!((pebble.logged_count("orders"), second.log_count("ordering")), (orders, 0));
}
