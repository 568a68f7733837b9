//! `source_address = "client"`: the back end sees the client's own address, once `snisplit net` has set up the routing of
//! the answers.

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};

use snisplit_tests::agent::{self, Agent, PORT, binary_path};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::ENGINES;
use snisplit_tests::lab::{BACKEND6, CLIENT, Lab, PROXY6, backend};
use snisplit_tests::link::has_ipv6;
use snisplit_tests::stream::{
    accept, connect, listen, read_all, read_exact, shutdown_write, write,
};

const DUAL_STACK_ROUTE: &str = "a.test=10.91.2.2:8001,[fd91:2::2]:8001;source_address=client";

fn run_net(lab: &Lab, verb: &str, flags: &[&str]) -> Output {
    let mut command = Command::new(binary_path());
    command.args(["net", verb]).args(flags);
    lab.in_proxy(|| command.output()).unwrap()
}

fn output_text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out).into_owned()).concat()
}

#[test]
fn a_backend_sees_the_clients_own_address() {
    let lab = Lab::new();
    lab.route_via_proxy();
    let flags = ["--listen", "[::]:443", "--route", DUAL_STACK_ROUTE];
    let missing = run_net(&lab, "check", &flags);
    assert_eq!(missing.status.code(), Some(1), "{}", output_text(&missing));
    assert!(output_text(&missing).contains("NO    ip route add local default dev lo table 1443"));
    assert!(run_net(&lab, "apply", &flags).status.success());
    let there = run_net(&lab, "check", &flags);
    assert!(there.status.success(), "{}", output_text(&there));
    assert_eq!(
        output_text(&run_net(&lab, "apply", &flags)),
        "nothing to change\n",
        "a second `apply` has nothing to do"
    );

    for engine in ENGINES {
        let agent = Agent::start(&lab, &["--engine", engine, "--route", DUAL_STACK_ROUTE]);
        for case in family_cases() {
            // The packet engine declines flows whose source address is not one of the host.
            let expected = if engine == "packet" { "splice" } else { engine };
            check_flow(&lab, &agent, expected, case);
        }
    }
    assert!(run_net(&lab, "remove", &[]).status.success());
    let gone = run_net(&lab, "check", &flags);
    assert_eq!(output_text(&gone).matches("NO    ip").count(), 4, "{}", output_text(&gone));
}

/// Addresses of one address family.
#[derive(Clone, Copy)]
struct FamilyCase {
    agent: SocketAddr,
    backend: SocketAddr,
    client: IpAddr,
}

/// Cases for each address family that the kernel has.
fn family_cases() -> Vec<FamilyCase> {
    let v4 =
        FamilyCase { agent: agent::address(), backend: backend(8001), client: IpAddr::V4(CLIENT) };
    if !has_ipv6() {
        return vec![v4];
    }
    let v6 = FamilyCase {
        agent: SocketAddr::new(IpAddr::V6(PROXY6), PORT),
        backend: SocketAddr::new(IpAddr::V6(BACKEND6), 8001),
        client: "fd91:1::2".parse().unwrap(),
    };
    vec![v4, v6]
}

fn check_flow(lab: &Lab, agent: &Agent, engine: &str, case: FamilyCase) {
    let listener = listen(lab, case.backend);
    let stream = connect(lab, case.agent);
    let hello = ClientHello::new().sni(b"a.test").encode();
    write(&stream, &hello);
    let server = accept(&listener);
    assert_eq!(server.peer_addr().unwrap().ip(), case.client);
    assert_eq!(read_exact(&server, hello.len()), hello);
    let answer = vec![7; 1 << 20];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write(&server, &answer);
            shutdown_write(&server);
        });
        assert_eq!(read_all(&stream), answer);
    });
    shutdown_write(&stream);
    assert_eq!(read_all(&server), b"");
    let record = agent.next_record();
    assert_eq!((&record["outcome"], &record["engine"]), (&"closed".into(), &engine.into()));
    assert_eq!(record["backend"], case.backend.to_string(), "the back end of the client's family");
}

#[test]
fn missing_routing_is_logged_at_start() {
    let lab = Lab::new();
    let route = "a.test=10.91.2.2:8001;source_address=client";
    let agent = Agent::start(&lab, &["--route", route]).allow_warnings();
    assert_eq!(agent.log_count("is missing; `snisplit net apply` adds it"), 2, "{}", agent.log());
    // `apply` removes rules that the configuration does not need.
    let other = ["--listen", "[::]:443", "--route", "a.test=10.91.2.2:8002;source_address=client"];
    assert!(run_net(&lab, "apply", &["--listen", "[::]:443", "--route", route]).status.success());
    let changed = output_text(&run_net(&lab, "apply", &other));
    assert!(changed.contains("removed  ip rule") && changed.contains("sport 8002"), "{changed}");
}
