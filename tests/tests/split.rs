//! TLS clients reach the back end of their server name.

use std::process::{Command, Stdio};

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::ENGINES;
use snisplit_tests::lab::{BACKEND6, CLIENT, Lab, PROXY6, backend};
use snisplit_tests::link::has_ipv6;
use snisplit_tests::peer::{caddy, curl, nginx, openssl, s_client, traefik};
use snisplit_tests::record_skip;
use snisplit_tests::wait::wait_until;

#[test]
fn each_server_name_reaches_its_backend() {
    let lab = Lab::new();
    let _servers = [
        nginx(&lab, 8001, "nginx.test", "nginx here"),
        caddy(&lab, 8002, "caddy.test", "caddy here"),
        traefik(&lab, 8003, "traefik.test"),
        openssl(&lab, backend(8004), "openssl.test", &["-rev"]),
    ];
    let routes = ["nginx.test=10.91.2.2:8001", "caddy.test=10.91.2.2:8002"];
    let more = ["traefik.test=10.91.2.2:8003", "*.test=10.91.2.2:8004"];
    let flags: Vec<&str> =
        routes.iter().chain(&more).flat_map(|route| ["--route", *route]).collect();
    for engine in ENGINES {
        let agent = Agent::start(&lab, &[&flags[..], &["--engine", engine]].concat());
        for version in ["1.2", "1.3"] {
            assert_each_answers(&lab, &agent, engine, version);
        }
    }
}

fn assert_each_answers(lab: &Lab, agent: &Agent, engine: &str, version: &str) {
    let min_version = format!("--tlsv{version}");
    for (name, port, answer) in [
        ("nginx.test", 443, "nginx here"),
        ("caddy.test", 8002, "caddy here"),
        ("traefik.test", 443, "OK"),
    ] {
        let url = format!("https://{name}:{port}/");
        let done = curl(lab, &url, &["--tls-max", version, &min_version]);
        assert_eq!(String::from_utf8_lossy(&done.stdout), answer, "{name} {version} {done:?}");
        let record = agent.next_record();
        assert_eq!((&record["sni"], &record["engine"]), (&name.into(), &engine.into()));
        let client = record["client"].as_str().unwrap();
        assert!(client.starts_with(&format!("{CLIENT}:")), "{record}");
    }
    let version_flag = format!("-tls{}", version.replace('.', "_"));
    let output = s_client(lab, "other.test", "hello\nCLOSE\n", &[&version_flag, "-quiet"]);
    assert!(output.contains("olleh"), "{output}");
    assert_eq!(agent.next_record()["route"], "*.test");
}

#[test]
fn a_name_without_a_route_is_rejected_with_alert_112() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &["--route", "a.test=10.91.2.2:8001"]);
    for flags in [&[][..], &["-tls1_2"], &["-tls1_3"]] {
        let output = s_client(&lab, "b.test", "", flags);
        assert!(output.contains("alert number 112"), "{output}");
        assert_eq!(agent.next_record()["alert"], "unrecognized_name");
    }
    let done = curl(&lab, "https://b.test/", &[]);
    assert_eq!(done.status.code(), Some(35), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("unrecognized name"), "{done:?}");
    agent.next_record();
    let mut gnutls = Command::new("gnutls-cli");
    gnutls.args(["--insecure", "--sni-hostname", "b.test", "10.91.1.1"]);
    let done = lab.in_client(|| gnutls.output()).unwrap();
    let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(output.contains("name") && output.contains("not recognized"), "{output}");
}

#[test]
fn ipv6_works_on_both_sides() {
    if !has_ipv6() {
        return record_skip("this kernel has no IPv6");
    }
    let lab = Lab::new();
    let _server = openssl(&lab, (BACKEND6, 8001).into(), "six.test", &["-www"]);
    let agent = Agent::start(&lab, &["--route", "six.test=[fd91:2::2]:8001"]);
    let mut curl = Command::new("curl");
    curl.args(["-sSk", "-m", "20", "-6", "--resolve", &format!("six.test:443:[{PROXY6}]")]);
    let done = lab.in_client(|| curl.arg("https://six.test/").output()).unwrap();
    assert!(String::from_utf8_lossy(&done.stdout).contains("s_server"), "{done:?}");
    let record = agent.next_record();
    assert_eq!(record["backend"], "[fd91:2::2]:8001");
    assert!(record["client"].as_str().unwrap().starts_with("[fd91:1::2]:"), "{record}");
}

/// OpenSSL sends a line as early data (0-RTT) behind its ClientHello, and the back end accepts it.
#[test]
fn early_data_reaches_the_back_end() {
    let lab = Lab::new();
    let server = openssl(&lab, backend(8001), "a.test", &["-early_data", "-no_anti_replay"]);
    for engine in ENGINES {
        let agent = Agent::start(&lab, &["--engine", engine, "--route", "a.test=10.91.2.2:8001"]);
        let session = lab.dir().join(format!("session-{engine}"));
        let session = session.to_str().unwrap();
        get_session(&lab, session);
        agent.next_record();
        let early = lab.dir().join("early");
        let line = format!("early by {engine}\n");
        std::fs::write(&early, &line).unwrap();
        let args = ["-tls1_3", "-sess_in", session, "-early_data", early.to_str().unwrap()];
        let output = s_client(&lab, "a.test", "late\nQ\n", &args);
        assert!(output.contains("Early data was accepted"), "{output}\n{}", server.log());
        assert!(server.log().contains(&line), "{}", server.log());
        agent.next_record();
    }
}

/// Connects until the session ticket is in the file `session`.
fn get_session(lab: &Lab, session: &str) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_3", "-servername", "a.test", "-sess_out", session]);
    command.args(["-connect", &agent::address().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = lab.in_client(|| command.spawn()).unwrap();
    wait_until("the session ticket", || {
        std::fs::read(session).ok().filter(|file| !file.is_empty())
    });
    drop(client.stdin.take());
    client.wait().unwrap();
}

#[test]
fn a_dead_backend_is_skipped_and_no_backend_is_an_alert() {
    let lab = Lab::new();
    let _server = openssl(&lab, backend(8001), "a.test", &["-rev"]);
    let route = "a.test=10.91.2.2:8009,10.91.2.2:8001";
    let dead = "dead.test=10.91.2.2:8009";
    let agent = Agent::start(&lab, &["--route", route, "--route", dead]).allow_warnings();
    for _ in 0..6 {
        let output = s_client(&lab, "a.test", "hello\nCLOSE\n", &["-quiet"]);
        assert!(output.contains("olleh"), "{output}");
        assert_eq!(agent.next_record()["backend"], "10.91.2.2:8001");
    }
    let tried = "snisplit_backend_connect_failures_total{backend=\"10.91.2.2:8009\"}";
    assert_eq!(
        agent.metric(&lab, tried),
        3.0,
        "round robin begins with the dead back end every second time"
    );
    let output = s_client(&lab, "dead.test", "", &[]);
    assert!(output.contains("alert number 80"), "{output}");
    assert_eq!(agent.next_record()["reason"], "no_backend");
}
