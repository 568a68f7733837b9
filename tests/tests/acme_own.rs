//! Certificates that the agent orders from a CA (Pebble), serves and renews.

use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{Agent, binary_path};
use snisplit_tests::ari::AriProxy;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::pebble::{self, EabKey, Pebble, PebbleConfig, admin_get, certificate_status};
use snisplit_tests::peer::{ServerProcess, nginx_plain, openssl, s_client, write_file};
use snisplit_tests::wait::{sleep_for, wait_until, wait_until_within};

const TERMINATE: [&str; 2] = ["--terminate", "front.test,www.front.test=10.91.2.2:8080"];

/// Creates a lab with a plaintext server behind `front.test`.
fn create_lab() -> (Lab, ServerProcess) {
    let lab = Lab::new();
    let backend = nginx_plain(&lab, 8080, "plain nginx here");
    (lab, backend)
}

/// Starts an agent that orders from Pebble, with these flags besides.
fn start_agent(lab: &Lab, flags: &[&str]) -> Agent {
    let acme = pebble::acme_flags(lab);
    let acme: Vec<&str> = acme.iter().map(String::as_str).collect();
    Agent::start(lab, &[&acme[..], flags].concat())
}

/// Runs `snisplit certs` with the agent's own flags.
fn run_certs(lab: &Lab, args: &[&str]) -> Output {
    let mut command = Command::new(binary_path());
    command.arg("certs").args(args).args(["--listen", "[::]:443"]).args(TERMINATE);
    command.args(pebble::acme_flags(lab)).output().unwrap()
}

fn output_text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out).into_owned()).concat()
}

#[test]
fn one_certificate_for_all_names_of_an_entry() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    let agent = start_agent(&lab, &TERMINATE);
    let www = pebble.wait_for_certificate(&lab, "www.front.test");
    assert_eq!(pebble.served_certificate(&lab, "front.test").unwrap(), www);
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, 1));
    let name = "snisplit_acme_validations_total{class=\"managed\",action=\"terminate\",\
                reason=\"challenge_pending\"}";
    assert!(agent.metric(&lab, name) >= 2.0);
    // The certificate is on disk, so the next agent orders none.
    drop(agent);
    let _agent = self::start_agent(&lab, &TERMINATE);
    assert_eq!(pebble.served_certificate(&lab, "front.test").unwrap(), www);
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, 1));
    assert_eq!(admin_get(&lab, "/readyz"), ("ok\n".into(), 200));
}

#[test]
fn passthrough_works_before_a_certificate_is_issued() {
    let (lab, _backend) = create_lab();
    let flags = [&TERMINATE[..], &["--route", "a.test=10.91.2.2:8001"]].concat();
    let agent = start_agent(&lab, &flags).allow_warnings();
    let _tenant = openssl(&lab, backend(8001), "a.test", &["-rev"]);
    let output = s_client(&lab, "a.test", "stressed\nCLOSE\n", &["-quiet"]);
    assert!(output.contains("desserts"), "{output}");
    let output = s_client(&lab, "front.test", "", &[]);
    assert!(output.contains("alert number 112"), "{output}");
    assert_eq!(agent.next_record_for("front.test")["reason"], "no_certificate");
    assert_eq!(admin_get(&lab, "/readyz"), ("no certificate yet: front.test\n".into(), 503));
    assert_eq!(admin_get(&lab, "/healthz").1, 200);
    wait_until("a failed order", || {
        (agent.log_count("WARN certificate order failed") == 1).then_some(())
    });
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
    let _agent = start_agent(&lab, &TERMINATE);
    let before = pebble.wait_for_certificate(&lab, "front.test");
    let listed = wait_until("the status", || {
        let listed = output_text(&run_certs(&lab, &[]));
        listed.contains("next order").then_some(listed)
    });
    for text in ["front.test www.front.test", "by           tls-alpn-01", "Pebble Intermediate CA"]
    {
        assert!(listed.contains(text), "{listed}");
    }
    assert!(listed.contains("last error   none"), "{listed}");
    let unknown = run_certs(&lab, &["renew", "other.test"]);
    assert!(output_text(&unknown).contains("no [[terminate]] has \"other.test\""), "{unknown:?}");
    let renewed = run_certs(&lab, &["renew", "www.front.test"]);
    assert!(renewed.status.success(), "{renewed:?}");
    wait_until("a new certificate", || {
        (pebble.served_certificate(&lab, "front.test").ok()? != before).then_some(())
    });
    assert_eq!(pebble.logged_count("accounts"), 1);
}

/// Certificates of 30 seconds are renewed when a third of that time is left, and clients always get a valid one.
#[test]
fn short_lived_certificates_are_renewed_in_time() {
    let (lab, _backend) = create_lab();
    let pebble =
        Pebble::start_with(&lab, PebbleConfig { validity_seconds: 30, ..PebbleConfig::default() });
    let _agent = start_agent(&lab, &TERMINATE);
    let mut last = pebble.wait_for_certificate(&lab, "front.test");
    for _ in 0..2 {
        last = wait_until_within(Duration::from_secs(40), "a renewal", || {
            let now = pebble.served_certificate(&lab, "front.test").expect("a valid certificate");
            (now != last).then_some(now)
        });
    }
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, 3));
}

/// nginx in front of Pebble adds renewal information (RFC 9773) whose window is in the past, as before a revocation.
/// Without it, the agent would renew a certificate of 300 s after 200 s.
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
    let _agent = Agent::start(&lab, &[&acme[..], &TERMINATE].concat());
    let first = pebble.wait_for_certificate(&lab, "front.test");
    // The default timeout is much less than 200 s.
    wait_until("a renewal in the CA's window", || {
        let now = pebble.served_certificate(&lab, "front.test").unwrap();
        (now != first).then_some(())
    });
    // The path ends in the key identifier and the serial number of the certificate, each in base64url (RFC 9773 §4.1).
    let path = ari.first_renewal_info_path();
    let id = path.strip_prefix("/ari/").and_then(|id| id.split_once('.'));
    assert!(id.is_some_and(|(key, serial)| !key.is_empty() && !serial.is_empty()), "{path}");
}

/// A bad nonce is not an error of the order, however often it happens in a row (RFC 8555 §6.5). The ACME library gives up
/// after three bad nonces, which most runs with eight orders at this rate have.
#[test]
fn a_bad_nonce_is_retried() {
    let (lab, _backend) = create_lab();
    let pebble =
        Pebble::start_with(&lab, PebbleConfig { bad_nonce_percent: 30, ..PebbleConfig::default() });
    let names: Vec<String> = (0..8).map(|n| format!("n{n}.test")).collect();
    let flags =
        names.iter().flat_map(|name| ["--terminate".into(), format!("{name}=10.91.2.2:8080")]);
    let flags: Vec<String> = flags.collect();
    // The agent warns of an order that fails, and the test fails at a warning.
    let _agent = start_agent(&lab, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    names.iter().for_each(|name| _ = pebble.wait_for_certificate(&lab, name));
    assert_eq!((pebble.logged_count("accounts"), pebble.logged_count("orders")), (1, names.len()));
}

#[test]
fn an_account_is_created_with_external_binding() {
    let (lab, _backend) = create_lab();
    let secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let settings =
        PebbleConfig { eab: Some(EabKey { id: "kid-1", hmac: secret }), ..PebbleConfig::default() };
    let pebble = Pebble::start_with(&lab, settings);
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
    // The CA rejects a wrong key, and the agent logs that. The right key, after a reload, is used at once.
    let file = write_file(&lab, "snisplit.toml", &config("d3Jvbmcga2V5IHRoYXQgbm9ib2R5IGtub3dz"));
    let agent = Agent::start_with_config(&lab, &file, &[]).allow_warnings();
    wait_until("a rejection", || {
        (agent.log_count("WARN certificate order failed") >= 1).then_some(())
    });
    std::fs::write(&file, config(secret)).unwrap();
    let status = pebble::certificate_dir(&lab, "front.test").join("status.json");
    wait_until("the rejection to be on disk", || std::fs::remove_file(&status).ok());
    agent.signal(Signal::HUP);
    pebble.wait_for_certificate(&lab, "front.test");
    assert_eq!(pebble.logged_count("accounts"), 1);
}

#[test]
fn the_backoff_after_a_rejection_survives_a_restart() {
    let (lab, _backend) = create_lab();
    let pebble = Pebble::start(&lab);
    // The agent listens for HTTP-01 on loopback only, so the CA cannot connect.
    let terminate = "front.test=10.91.2.2:8080;challenge=http-01";
    let flags = ["--terminate", terminate, "--http", "127.0.0.1:80"];
    let first = start_agent(&lab, &flags).allow_warnings();
    wait_until("a rejection", || {
        (first.log_count("WARN certificate order failed") == 1).then_some(())
    });
    assert!(first.log().contains("acme:error:connection"), "the CA's error: {}", first.log());
    let failed = wait_until("the status", || {
        certificate_status(&lab, "front.test").filter(|status| !status["failure"].is_null())
    });
    assert_eq!(failed["failure"]["count"], 1);
    assert!(failed["next"].as_u64().unwrap() >= failed["failure"]["at"].as_u64().unwrap() + 120);
    assert_eq!(first.log_count("ordering"), 1);
    drop(first);
    let orders = pebble.logged_count("orders");
    let second = start_agent(&lab, &flags).allow_warnings();
    sleep_for(Duration::from_secs(2));
    assert_eq!((pebble.logged_count("orders"), second.log_count("ordering")), (orders, 0));
}
