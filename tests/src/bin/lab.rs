//! `cargo xtask lab`: a shell in the client's namespace, with a running agent and two back ends.

use std::process::Command;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::lab::Lab;
use snisplit_tests::peer::{caddy, nginx};

fn main() {
    let lab = Lab::new();
    let [client, proxy, backends] = lab.namespace_names();
    let _servers = [
        nginx(&lab, 8001, "a.test", "nginx here\\n"),
        caddy(&lab, 8002, "b.test", "Caddy here\\n"),
    ];
    let routes = ["--route", "a.test=10.91.2.2:8001", "--route", "b.test=10.91.2.2:8002"];
    let agent = Agent::start(&lab, &routes).allow_warnings();
    println!("namespaces  {client} (you), {proxy} (snisplit, pid {}), {backends}", agent.pid());
    println!("routes      a.test -> nginx, b.test -> Caddy");
    println!("try         curl -k --connect-to ::{} https://a.test/", agent::address());
    println!("            ip netns exec {proxy} curl -s 127.0.0.1:9901/metrics");
    println!("leave       exit");
    let mut shell = Command::new("bash");
    let _exit_status_of_the_shell = lab.in_client(|| shell.arg("--norc").status()).unwrap();
}
