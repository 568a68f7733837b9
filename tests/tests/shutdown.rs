//! How the agent goes: drains, is cut, starves for descriptors, dies.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::WITH_SOCKETS;
use snisplit_tests::hello::Hello;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{accept, connect, ending, finish, listen, read_all, read_some, write};
use snisplit_tests::wait::until;
use socket2::{Domain, SockAddr, Socket, Type};

const ROUTE: [&str; 2] = ["--route", "a.test=10.91.2.2:8001"];

/// A flow that has begun: client and back end.
fn flow(lab: &Lab, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(lab, agent::address());
    let hello = Hello::new().sni(b"a.test").bytes();
    write(&client, &hello);
    let backend = accept(listener);
    assert_eq!(read_some(&backend, hello.len()), hello);
    (client, backend)
}

fn refuses_connections(lab: &Lab) {
    until("the listener to close", || lab.client(|| TcpStream::connect(agent::address())).err());
}

#[test]
fn sigterm_lets_running_flows_end() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let (client, backend) = flow(&lab, &listener);
    agent.signal(Signal::TERM);
    refuses_connections(&lab);
    write(&client, b"still here");
    assert_eq!(read_some(&backend, 10), b"still here");
    finish(&client);
    assert_eq!(read_all(&backend), b"");
    write(&backend, b"and through");
    finish(&backend);
    assert_eq!(read_all(&client), b"and through");
    assert_eq!(agent.record_of("a.test")["outcome"], "closed");
    assert!(agent.exit().success());
}

#[test]
fn the_drain_has_an_end_and_cuts_with_a_reset() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab, &[&ROUTE[..], &["--drain", "300ms"]].concat());
    let listener = listen(&lab, backend(8001));
    let (client, backend) = flow(&lab, &listener);
    agent.signal(Signal::TERM);
    for side in [&client, &backend] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = agent.record_of("a.test");
    assert_eq!(record["outcome"], "cut");
    assert_eq!(record["engine"], agent::default_engine());
    assert!(agent.exit().success());
}

#[test]
fn a_second_sigterm_cuts_at_once() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let (client, _backend) = flow(&lab, &listener);
    agent.signal(Signal::TERM);
    refuses_connections(&lab);
    agent.signal(Signal::TERM);
    assert_eq!(ending(&client).1, Err(ErrorKind::ConnectionReset));
    assert_eq!(agent.record_of("a.test")["outcome"], "cut");
    assert!(agent.exit().success());
}

/// A dead agent must not look like a clean end of stream to either peer. (Flows of the packet engine
/// outlive it: `packet.rs`.)
#[test]
fn a_killed_agent_resets_its_flows() {
    for engine in WITH_SOCKETS {
        let lab = Lab::new();
        let agent = Agent::start(&lab, &[&ROUTE[..], &["--engine", engine]].concat());
        let listener = listen(&lab, backend(8001));
        let (client, backend) = flow(&lab, &listener);
        write(&backend, b"half of it");
        assert_eq!(read_some(&client, 10), b"half of it");
        agent.signal(Signal::KILL);
        for side in [&client, &backend] {
            assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
        }
    }
}

/// With its descriptors used up the agent keeps what it has, burns no CPU, and recovers.
#[test]
fn a_full_descriptor_table() {
    let lab = Lab::new();
    let by = ["prlimit", "--nofile=48:48"];
    let kept_low = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"];
    let agent = Agent::start_under(&lab, &[&by[..], &kept_low].concat(), &ROUTE).may_warn();
    let listener = listen(&lab, backend(8001));
    let mut flows = vec![flow(&lab, &listener)];
    // Silent connections take what is left.
    let silent: Vec<_> = (0..60).map(|_| connect(&lab, agent::address())).collect();
    until("accept to fail", || agent.log().contains("cannot accept").then_some(()));
    let before = agent.cpu();
    let (client, backend) = flows.pop().unwrap();
    snisplit_tests::wait::pass(Duration::from_secs(1));
    let spent = agent.cpu() - before;
    assert!(spent < Duration::from_millis(200), "{spent:?} of CPU in a second of starving");
    write(&client, b"still carried");
    assert_eq!(read_some(&backend, 13), b"still carried");
    finish(&client);
    finish(&backend);
    drop(silent);
    drop((client, backend));
    listener.set_nonblocking(true).unwrap();
    until("room again", || {
        let client = connect(&lab, agent::address());
        write(&client, &Hello::new().sni(b"a.test").bytes());
        client.set_nonblocking(true).unwrap();
        // Accepted as soon as there is room for one more, it may be refused for want of a second one.
        let waits = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
        let is_refused = || !client.peek(&mut [0]).is_err_and(waits);
        let carried = || listener.accept().is_ok().then_some(true);
        let is_carried = until("an answer", || carried().or(is_refused().then_some(false)));
        is_carried.then_some(())
    });
}

#[test]
fn one_agent_a_port() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    cannot_listen(&lab);
    drop(agent);
    // Nor may it share one with whoever would.
    let any = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, agent::PORT)));
    let _stranger = lab
        .proxy(|| {
            let stranger = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            stranger.set_reuse_port(true)?;
            stranger.bind(&any)?;
            stranger.listen(1).map(|()| stranger)
        })
        .unwrap();
    cannot_listen(&lab);
}

fn cannot_listen(lab: &Lab) {
    // One that can would not come back.
    let mut second = std::process::Command::new("timeout");
    second.args(["20", &agent::binary(), "run", "--listen", "[::]:443"]).args(ROUTE);
    let done = lab.proxy(|| second.output()).unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success());
    assert!(
        said.contains("listener.address: cannot listen on [::]:443: Address already in use"),
        "{said}"
    );
}
