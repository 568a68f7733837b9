//! `source = "client"`: the back end sees the client's own address, once `snisplit net` has set up
//! the way back.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};

use snisplit_tests::agent::{self, Agent, PORT, binary};
use snisplit_tests::flow::ENGINES;
use snisplit_tests::hello::Hello;
use snisplit_tests::lab::{BACKEND6, CLIENT, Lab, PROXY6, backend};
use snisplit_tests::line::has_ipv6;
use snisplit_tests::stream::{accept, connect, finish, listen, read_all, read_some, write};

const BOTH: &str = "a.test=10.91.2.2:8001,[fd91:2::2]:8001;source=client";

fn net(lab: &Lab, verb: &str, flags: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(["net", verb]).args(flags);
    lab.proxy(|| command.output()).unwrap()
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out).into_owned()).concat()
}

#[test]
fn a_back_end_sees_the_client_itself() {
    let lab = Lab::new();
    lab.route_through();
    let flags = ["--listen", "[::]:443", "--route", BOTH];
    let missing = net(&lab, "check", &flags);
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
    assert!(text(&missing).contains("NO    ip route add local default dev lo table 1443"));
    assert!(net(&lab, "apply", &flags).status.success());
    let there = net(&lab, "check", &flags);
    assert!(there.status.success(), "{}", text(&there));
    assert_eq!(text(&net(&lab, "apply", &flags)), "", "there is nothing left to do");

    for engine in ENGINES {
        let agent = Agent::start(&lab, &["--engine", engine, "--route", BOTH]);
        for way in ways() {
            // Nobody else's address is one that packets could be sent from.
            let by = if engine == "packet" { "splice" } else { engine };
            flow(&lab, &agent, by, way);
        }
    }
    assert!(net(&lab, "remove", &[]).status.success());
    let gone = net(&lab, "check", &flags);
    assert_eq!(text(&gone).matches("NO    ip").count(), 4, "{}", text(&gone));
}

type Way = (SocketAddr, SocketAddr, IpAddr);

/// For each family: where the agent is, where the back end, and who the client.
fn ways() -> Vec<Way> {
    let mut ways = vec![(agent::address(), backend(8001), IpAddr::V4(CLIENT))];
    if has_ipv6() {
        let to = SocketAddr::new(IpAddr::V6(PROXY6), PORT);
        let back = SocketAddr::new(IpAddr::V6(BACKEND6), 8001);
        ways.push((to, back, "fd91:1::2".parse().unwrap()));
    }
    ways
}

fn flow(lab: &Lab, agent: &Agent, engine: &str, (to, back, client): Way) {
    let listener = listen(lab, back);
    let stream = connect(lab, to);
    let hello = Hello::new().sni(b"a.test").bytes();
    write(&stream, &hello);
    let server = accept(&listener);
    assert_eq!(server.peer_addr().unwrap().ip(), client);
    assert_eq!(read_some(&server, hello.len()), hello);
    let answer = vec![7; 1 << 20];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write(&server, &answer);
            finish(&server);
        });
        assert_eq!(read_all(&stream), answer);
    });
    finish(&stream);
    assert_eq!(read_all(&server), b"");
    let record = agent.record();
    assert_eq!((&record["outcome"], &record["engine"]), (&"closed".into(), &engine.into()));
    assert_eq!(record["backend"], back.to_string(), "the one of the client's own family");
}

#[test]
fn the_agent_says_at_its_start_what_is_missing() {
    let lab = Lab::new();
    let route = "a.test=10.91.2.2:8001;source=client";
    let agent = Agent::start(&lab, &["--route", route]).may_warn();
    assert_eq!(agent.logged("is missing; `snisplit net apply` adds it"), 2, "{}", agent.log());
    // What another configuration needed goes with the next `apply`.
    let other = ["--listen", "[::]:443", "--route", "a.test=10.91.2.2:8002;source=client"];
    assert!(net(&lab, "apply", &["--listen", "[::]:443", "--route", route]).status.success());
    let changed = text(&net(&lab, "apply", &other));
    assert!(changed.contains("removed  ip rule") && changed.contains("sport 8002"), "{changed}");
}
