//! How the agent goes: drains, is cut, starves for descriptors, dies.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::SOCKET_ENGINES;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{
    accept, connect, listen, read_all, read_exact, read_to_end_or_error, shutdown_write, write,
};
use snisplit_tests::wait::wait_until;
use socket2::{Domain, SockAddr, Socket, Type};

const ROUTE: [&str; 2] = ["--route", "a.test=10.91.2.2:8001"];

/// A flow that has begun: client and back end.
fn open_flow(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(lab, agent::address());
    let hello = ClientHello::new().sni(b"a.test").encode();
    write(&client, &hello);
    let backend = accept(listener);
    assert_eq!(read_exact(&backend, hello.len()), hello);
    (client, backend)
}

fn wait_until_connections_are_refused(lab: &Lab) {
    wait_until("the listener to close", || {
        lab.in_client(|| TcpStream::connect(agent::address())).err()
    });
}

#[test]
fn sigterm_lets_running_flows_end() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let (client, backend) = open_flow(&lab, &listener);
    agent.signal(Signal::TERM);
    wait_until_connections_are_refused(&lab);
    write(&client, b"still here");
    assert_eq!(read_exact(&backend, 10), b"still here");
    shutdown_write(&client);
    assert_eq!(read_all(&backend), b"");
    write(&backend, b"and through");
    shutdown_write(&backend);
    assert_eq!(read_all(&client), b"and through");
    assert_eq!(agent.next_record_for("a.test")["outcome"], "closed");
    assert!(agent.wait_for_exit().success());
}

#[test]
fn flows_are_reset_after_the_drain_timeout() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab, &[&ROUTE[..], &["--drain-timeout", "300ms"]].concat());
    let listener = listen(&lab, backend(8001));
    let (client, backend) = open_flow(&lab, &listener);
    agent.signal(Signal::TERM);
    for side in [&client, &backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = agent.next_record_for("a.test");
    assert_eq!(record["outcome"], "shutdown");
    assert_eq!(record["engine"], agent::default_engine());
    assert!(agent.wait_for_exit().success());
}

#[test]
fn a_second_sigterm_resets_flows_at_once() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let (client, _backend) = open_flow(&lab, &listener);
    agent.signal(Signal::TERM);
    wait_until_connections_are_refused(&lab);
    agent.signal(Signal::TERM);
    assert_eq!(read_to_end_or_error(&client).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(agent.next_record_for("a.test")["outcome"], "shutdown");
    assert!(agent.wait_for_exit().success());
}

/// A dead agent must not look like a clean end of stream to either peer. (Flows of the packet engine
/// outlive it: `packet.rs`.)
#[test]
fn a_killed_agent_resets_its_flows() {
    for engine in SOCKET_ENGINES {
        let lab = Lab::new();
        let agent = Agent::start(&lab, &[&ROUTE[..], &["--engine", engine]].concat());
        let listener = listen(&lab, backend(8001));
        let (client, backend) = open_flow(&lab, &listener);
        write(&backend, b"half of it");
        assert_eq!(read_exact(&client, 10), b"half of it");
        agent.signal(Signal::KILL);
        for side in [&client, &backend] {
            assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
    }
}

/// With its descriptors used up the agent keeps what it has, burns no CPU, and recovers.
#[test]
fn flows_continue_while_the_descriptor_table_is_full() {
    let lab = Lab::new();
    let by = ["prlimit", "--nofile=48:48"];
    let without_sys_resource =
        ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"];
    let agent = Agent::start_with_wrapper(&lab, &[&by[..], &without_sys_resource].concat(), &ROUTE)
        .allow_warnings();
    let listener = listen(&lab, backend(8001));
    let mut flows = vec![open_flow(&lab, &listener)];
    // Silent connections take what is left.
    let silent: Vec<_> = (0..60).map(|_| connect(&lab, agent::address())).collect();
    wait_until("accept to fail", || agent.log().contains("cannot accept").then_some(()));
    let before = agent.cpu_time();
    let (client, backend) = flows.pop().unwrap();
    snisplit_tests::wait::sleep_for(Duration::from_secs(1));
    let spent = agent.cpu_time() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of CPU in a second of starving");
    write(&client, b"still carried");
    assert_eq!(read_exact(&backend, 13), b"still carried");
    shutdown_write(&client);
    shutdown_write(&backend);
    drop(silent);
    drop((client, backend));
    listener.set_nonblocking(true).unwrap();
    wait_until("room again", || {
        let client = connect(&lab, agent::address());
        write(&client, &ClientHello::new().sni(b"a.test").encode());
        client.set_nonblocking(true).unwrap();
        // Accepted as soon as there is room for one more, it may be refused for want of a second one.
        let waits = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_refused = || !client.peek(&mut [0]).is_err_and(waits);
        let carried = || listener.accept().is_ok().then_some(true);
        let is_carried = wait_until("an answer", || carried().or(is_refused().then_some(false)));
        is_carried.then_some(())
    });
}

#[test]
fn two_agents_cannot_share_a_port() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    assert_cannot_listen(&lab);
    drop(agent);
    // Nor may it share one with whoever would.
    let any = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, agent::PORT)));
    let _stranger = lab
        .in_proxy(|| {
            let stranger = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            stranger.set_reuse_port(true)?;
            stranger.bind(&any)?;
            stranger.listen(1).map(|()| stranger)
        })
        .unwrap();
    assert_cannot_listen(&lab);
}

fn assert_cannot_listen(lab: &Lab) {
    // One that can would not come back.
    let mut second = std::process::Command::new("timeout");
    second.args(["20", &agent::binary_path(), "run", "--listen", "[::]:443"]).args(ROUTE);
    let done = lab.in_proxy(|| second.output()).unwrap();
    let output = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success());
    assert!(
        output.contains("listener.address: cannot listen on [::]:443: Address already in use"),
        "{output}"
    );
}
