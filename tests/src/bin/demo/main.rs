//! `cargo xtask demo`: forwards and rejects connections of real clients, and prints each step.

use std::process::Output;

use rustix::process::Signal;
use serde_json::Value;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::{BACKEND, CLIENT, Lab, PROXY, backend};
use snisplit_tests::peer::{caddy, curl, nginx, openssl, s_client};

mod two_tier;

const ROUTES: [&str; 8] = [
    "--route",
    "a.test=10.91.2.2:8001",
    "--route",
    "b.test=10.91.2.2:8002",
    "--route",
    "*.a.test=10.91.2.2:8003",
    "--route",
    "*=10.91.2.2:8004",
];

fn main() {
    println!("Three network namespaces, joined by veth:\n");
    println!("  client {CLIENT}  ->  snisplit {PROXY}:443  ->  back ends {BACKEND}");
    println!("                                              nginx :8001    a.test");
    println!("                                              Caddy :8002    b.test");
    println!("                                              openssl :8003  *.a.test");
    println!("                                              openssl :8004  * (all other names)");
    println!("\nEach back end has its own certificate and key; snisplit has none of these.\n");
    let lab = Lab::new();
    let _servers = [
        nginx(&lab, 8001, "a.test", "nginx here"),
        caddy(&lab, 8002, "b.test", "Caddy here"),
        openssl(&lab, backend(8003), "www.a.test", &["-rev", "-alpn", "acme-tls/1"]),
        openssl(&lab, backend(8004), "left.test", &["-rev", "-alpn", "acme-tls/1"]),
    ];
    let mut sessions = Vec::new();
    for engine in ["splice", "copy"] {
        sessions.extend(run_with_engine(&lab, engine));
    }
    two_tier::run();
    print_summary(&sessions);
}

/// Runs the demonstration on one engine. Returns the records of its connections.
fn run_with_engine(lab: &Lab, engine: &str) -> Vec<Value> {
    println!("== snisplit run --engine {engine} {}", ROUTES.join(" "));
    let mut agent = Agent::start(lab, &[&ROUTES[..], &["--engine", engine]].concat());
    let mut records = Vec::new();
    for (name, port, answer) in [("a.test", 443, "nginx here"), ("b.test", 8002, "Caddy here")] {
        for version in ["1.2", "1.3"] {
            let tls = format!("--tlsv{version}");
            let done = curl(lab, &format!("https://{name}:{port}/"), &[&tls, "--tls-max", version]);
            records.push(print_connection(
                &format!("curl, TLS {version}, {name}"),
                &stdout_text(&done),
                &agent,
            ));
            assert_eq!(stdout_text(&done), answer, "{done:?}");
        }
    }
    let reversed = s_client(lab, "c.test", "stressed\nCLOSE\n", &["-quiet"]);
    let reversed = reversed.lines().next().unwrap_or_default().to_owned();
    records.push(print_connection("openssl s_client, c.test", &reversed, &agent));
    assert_eq!(reversed, "desserts");

    println!("   ACME (RFC 8737): a validation goes to the owner of the name, or is rejected");
    for name in ["www.a.test", "victim.test"] {
        let alpn = ["-alpn", "acme-tls/1"];
        let output = s_client(lab, name, "Q\n", &alpn);
        let certificate = output.lines().find(|line| line.starts_with("subject="));
        let alert = output.lines().find_map(|line| line.split_once("SSL alert number "));
        let answer = match (certificate, alert) {
            (_, Some((_, number))) => format!("alert {number}"),
            (Some(subject), None) => format!("certificate {subject}"),
            (None, None) => panic!("{output}"),
        };
        assert_eq!(answer.starts_with("alert 112"), name == "victim.test", "{output}");
        records.push(print_connection(&format!("validation of {name}"), &answer, &agent));
    }
    agent.signal(Signal::TERM);
    assert!(agent.wait_for_exit().success());
    println!("   SIGTERM: the agent has drained and stopped\n");
    records
}

fn print_connection(what: &str, answer: &str, agent: &Agent) -> Value {
    let record = agent.next_record();
    let text = |key: &str| record[key].as_str().unwrap_or("-").to_owned();
    let how = match record["alert"].as_str() {
        Some(alert) => format!("rejected with {alert} ({})", text("reason")),
        None => format!(
            "{} by {}, {} bytes up, {} down",
            text("backend"),
            text("engine"),
            record["bytes_up"],
            record["bytes_down"]
        ),
    };
    println!("   {what:<26} -> {answer:<24} | {how}");
    record
}

fn stdout_text(done: &Output) -> String {
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn print_summary(sessions: &[Value]) {
    let rejected = sessions.iter().filter(|record| record["outcome"] == "rejected").count();
    let bytes = |key: &str| sessions.iter().filter_map(|record| record[key].as_u64()).sum::<u64>();
    println!("{} real TLS connections through {}:", sessions.len(), agent::address());
    println!("  {} forwarded to the back end of their server name,", sessions.len() - rejected);
    println!(
        "    {} bytes up and {} bytes down, none of them decrypted;",
        bytes("bytes_up"),
        bytes("bytes_down")
    );
    println!(
        "  {rejected} rejected with a TLS alert: ACME validations of a name that no route owns."
    );
    println!("All as expected.");
}
