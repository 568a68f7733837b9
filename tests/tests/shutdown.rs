//! The end of an agent: draining, resets after the drain timeout, and a kill. Also: no free descriptor, and no free port.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::SOCKET_ENGINES;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{
    connect, listen, read_all, read_exact, read_to_end_or_error, shutdown_write, write,
};
use snisplit_tests::testbed::{Peers, ROUTE, Testbed};
use snisplit_tests::wait::{sleep_for, wait_until};
use socket2::{Domain, SockAddr, Socket, Type};

fn wait_until_connections_are_refused(lab: &Lab) {
    wait_until("the listener to close", || {
        lab.in_client(|| TcpStream::connect(agent::address())).err()
    });
}

#[test]
fn sigterm_lets_running_flows_end() {
    let mut testbed = Testbed::new(&[]);
    let Peers { client, backend } = testbed.connect();
    testbed.agent.signal(Signal::TERM);
    wait_until_connections_are_refused(&testbed.lab);
    write(&client, b"still here");
    assert_eq!(read_exact(&backend, 10), b"still here");
    shutdown_write(&client);
    assert_eq!(read_all(&backend), b"");
    write(&backend, b"and through");
    shutdown_write(&backend);
    assert_eq!(read_all(&client), b"and through");
    assert_eq!(testbed.agent.next_record_for("a.test")["outcome"], "closed");
    assert!(testbed.agent.wait_for_exit().success());
}

#[test]
fn flows_are_reset_after_the_drain_timeout() {
    let mut testbed = Testbed::new(&["--drain-timeout", "300ms"]);
    let Peers { client, backend } = testbed.connect();
    testbed.agent.signal(Signal::TERM);
    for side in [&client, &backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = testbed.agent.next_record_for("a.test");
    assert_eq!(record["outcome"], "shutdown");
    assert_eq!(record["engine"], agent::default_engine());
    assert!(testbed.agent.wait_for_exit().success());
}

#[test]
fn a_second_sigterm_resets_flows_at_once() {
    let mut testbed = Testbed::new(&[]);
    let Peers { client, backend: _open } = testbed.connect();
    testbed.agent.signal(Signal::TERM);
    wait_until_connections_are_refused(&testbed.lab);
    testbed.agent.signal(Signal::TERM);
    assert_eq!(read_to_end_or_error(&client).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(testbed.agent.next_record_for("a.test")["outcome"], "shutdown");
    assert!(testbed.agent.wait_for_exit().success());
}

/// Neither peer may mistake the death of the agent for an end of stream. Flows of the packet engine outlive their agent:
/// packet.rs.
#[test]
fn a_killed_agent_resets_its_flows() {
    for engine in SOCKET_ENGINES {
        let testbed = Testbed::new(&["--engine", engine]);
        let Peers { client, backend } = testbed.connect();
        write(&backend, b"half of it");
        assert_eq!(read_exact(&client, 10), b"half of it");
        testbed.agent.signal(Signal::KILL);
        for side in [&client, &backend] {
            assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
    }
}

/// Without a free descriptor, the agent forwards the flows that it has, uses no CPU, and recovers.
#[test]
fn flows_continue_while_the_descriptor_table_is_full() {
    let lab = Lab::new();
    // Without CAP_SYS_RESOURCE, the agent cannot raise the limit.
    let limit = ["prlimit", "--nofile=48:48", "setpriv", "--bounding-set", "-sys_resource"];
    let wrapper = [&limit[..], &["--inh-caps", "-sys_resource"]].concat();
    let agent = Agent::start_with_wrapper(&lab, &wrapper, &ROUTE).allow_warnings();
    let listener = listen(&lab, backend(8001));
    let hello = ClientHello::new().sni(b"a.test");
    let Peers { client, backend } = Peers::connect(&lab, agent::address(), &listener, &hello);
    // Silent connections use all other descriptors.
    let silent: Vec<_> = (0..60).map(|_| connect(&lab, agent::address())).collect();
    wait_until("accept to fail", || agent.log().contains("cannot accept").then_some(()));
    let before = agent.cpu_time();
    sleep_for(Duration::from_secs(1));
    let spent = agent.cpu_time() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of CPU time in a second");
    write(&client, b"still forwarded");
    assert_eq!(read_exact(&backend, 15), b"still forwarded");
    shutdown_write(&client);
    shutdown_write(&backend);
    drop(silent);
    drop((client, backend));
    listener.set_nonblocking(true).unwrap();
    wait_until("a new flow", || {
        let client = connect(&lab, agent::address());
        write(&client, &hello.encode());
        client.set_nonblocking(true).unwrap();
        // The first free descriptor suffices to accept a connection, but not to connect to its back end.
        let is_waiting = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_rejected = || !client.peek(&mut [0]).is_err_and(is_waiting);
        let is_forwarded = || listener.accept().is_ok();
        wait_until("a flow or a rejection", || match is_forwarded() {
            true => Some(Some(())),
            false => is_rejected().then_some(None),
        })
    });
}

#[test]
fn two_agents_cannot_share_a_port() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    assert_cannot_listen(&lab);
    drop(agent);
    // An agent does not share a port with another program either, even if that program has SO_REUSEPORT.
    let any = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, agent::PORT)));
    let _other_program = lab
        .in_proxy(|| {
            let other_program = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            other_program.set_reuse_port(true)?;
            other_program.bind(&any)?;
            other_program.listen(1).map(|()| other_program)
        })
        .unwrap();
    assert_cannot_listen(&lab);
}

fn assert_cannot_listen(lab: &Lab) {
    // An agent that can listen would run on.
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
