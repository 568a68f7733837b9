//! Back ends on unix sockets, back ends that hang or fail, and dead links.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::{ENGINES, Flow, SOCKET_ENGINES};
use snisplit_tests::lab::Lab;
use snisplit_tests::peer::{ServerProcess, curl, nginx};
use snisplit_tests::stream::{
    close_with_reset, connect, read_all, read_all_hashed, read_exact, shutdown_write, write,
};
use snisplit_tests::wait::{default_timeout, sleep_for, wait_until};

const BYTES: usize = 20_000_000;

/// Opens a flow to a back end on a unix socket, and gives its peers to `act`.
fn with_unix_backend(engine: &str, act: impl FnOnce(std::net::TcpStream, UnixStream, &Agent)) {
    let lab = Lab::new();
    let path = lab.dir().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let route = format!("a.test=unix:{}", path.display());
    let agent = Agent::start(&lab, &["--engine", engine, "--route", &route]);
    let client = connect(&lab, agent::address());
    let hello = ClientHello::new().sni(b"a.test").encode();
    write(&client, &hello);
    let (mut backend, _) = listener.accept().unwrap();
    backend.set_read_timeout(Some(default_timeout())).unwrap();
    let mut received = vec![0; hello.len()];
    backend.read_exact(&mut received).unwrap();
    assert_eq!(received, hello);
    act(client, backend, &agent);
}

#[test]
fn unix_sockets_forward_both_directions_and_half_closes() {
    for engine in ["copy", "splice"] {
        with_unix_backend(engine, |client, mut backend, agent| {
            let sent = thread::scope(|scope| {
                let up = scope.spawn(|| {
                    let hash = snisplit_tests::stream::RandomStream::default().send(&client, BYTES);
                    shutdown_write(&client);
                    hash
                });
                let mut all = Vec::new();
                backend.read_to_end(&mut all).unwrap();
                assert_eq!(all.len(), BYTES);
                let backend = &backend;
                let back = scope.spawn(move || {
                    std::io::Write::write_all(&mut &*backend, &all).unwrap();
                    backend.shutdown(Shutdown::Write).unwrap();
                });
                // The client has ended its direction, and still receives the response.
                let got = read_all_hashed(&client);
                back.join().unwrap();
                (up.join().unwrap(), got)
            });
            assert_eq!(sent.1, (BYTES, sent.0));
            let record = agent.next_record();
            assert_eq!((&record["outcome"], &record["engine"]), (&"closed".into(), &engine.into()));
            assert!(record["backend"].as_str().unwrap().starts_with("unix:/"), "{record}");
            assert_eq!(record["bytes_down"], BYTES, "{record}");
        });
    }
}

/// A unix socket has no reset (unix(7)), so the back end sees an end of stream. TLS detects that it is not a proper end.
#[test]
fn a_reset_ends_the_other_side_of_a_unix_socket() {
    for engine in ["copy", "splice"] {
        with_unix_backend(engine, |client, mut backend, agent| {
            close_with_reset(client);
            assert_eq!(backend.read(&mut [0; 8]).unwrap(), 0);
            assert_eq!(agent.next_record()["outcome"], "client_reset");
        });
        with_unix_backend(engine, |client, backend, agent| {
            write(&client, b"never read");
            wait_until("the bytes", || (unread_bytes(&backend) > 0).then_some(()));
            // Closing with unread bytes is an error for the peer (`unix_release_sock`).
            drop(backend);
            let (_, end) = snisplit_tests::stream::read_to_end_or_error(&client);
            assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
            assert_eq!(agent.next_record()["outcome"], "backend_reset");
        });
    }
}

/// Number of bytes in the receive buffer.
fn unread_bytes(backend: &UnixStream) -> u64 {
    rustix::io::ioctl_fionread(backend).unwrap()
}

#[test]
fn a_missing_unix_socket_is_skipped() {
    let lab = Lab::new();
    let path = lab.dir().join("nginx.sock");
    let _nginx =
        snisplit_tests::peer::nginx_on_socket(&lab, &format!("unix:{}", path.display()), 8001);
    let gone = lab.dir().join("gone.sock");
    let route =
        format!("a.test=unix:{},unix:{};health_check.type=tls", gone.display(), path.display());
    let agent = Agent::start(&lab, &["--route", &route]).allow_warnings();
    for _ in 0..4 {
        let done = curl(&lab, "https://a.test/", &[]);
        assert_eq!(done.stdout, b"nginx here", "{done:?}");
        let record = agent.next_record();
        assert_eq!(record["backend"], format!("unix:{}", path.display()));
    }
}

/// One request of a load.
#[derive(Debug)]
struct Request {
    started: Instant,
    ended: Instant,
    /// Output of curl, if the request failed.
    failure: Option<String>,
}

/// Has so many clients request a page again and again, each time on a new connection, while `act` runs.
fn request_during(lab: &Lab, clients: usize, act: impl FnOnce()) -> Vec<Request> {
    let over = AtomicBool::new(false);
    let requests = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    let done = curl(lab, "https://a.test/", &[]);
                    let failure = (done.stdout != b"nginx here").then(|| format!("{done:?}"));
                    let request = Request { started, ended: Instant::now(), failure };
                    requests.lock().unwrap().push(request);
                }
            });
        }
        act();
        over.store(true, Ordering::Relaxed);
    });
    requests.into_inner().unwrap()
}

/// A back end is killed, restarted, stopped and continued. Only requests that are in flight at such a moment may fail.
#[test]
fn a_failing_backend_fails_only_requests_in_flight() {
    let lab = Lab::new();
    let mut first = Some(nginx(&lab, 8001, "a.test", "nginx here"));
    let _second = nginx(&lab, 8002, "a.test", "nginx here");
    let route =
        "a.test=10.91.2.2:8001,10.91.2.2:8002;health_check.type=tls;health_check.interval=200ms";
    let flags = ["--route", route, "--first-byte-timeout", "300ms"];
    let agent = Agent::start(&lab, &flags).allow_warnings();
    let is_up = |value: f64| {
        let name = "snisplit_backend_up{backend=\"10.91.2.2:8001\"}";
        wait_until("health checks to notice", || (agent.metric(&lab, name) == value).then_some(()));
    };
    let send = |peer: &ServerProcess, signal| {
        kill_process(Pid::from_raw(peer.pid().cast_signed()).unwrap(), signal).unwrap();
    };
    let mut instants = Vec::new();
    let requests = request_during(&lab, 4, || {
        sleep_for(Duration::from_millis(500));
        instants.push(Instant::now());
        drop(first.take());
        is_up(0.0);
        first = Some(nginx(&lab, 8001, "a.test", "nginx here"));
        is_up(1.0);
        let first = first.as_ref().unwrap();
        instants.push(Instant::now());
        send(first, Signal::STOP);
        is_up(0.0);
        sleep_for(Duration::from_millis(500));
        send(first, Signal::CONT);
        is_up(1.0);
    });
    let unexpected = failures_outside(&requests, &instants);
    assert!(requests.len() > 50 && unexpected.is_empty(), "{unexpected:?}");
}

/// Requests that failed and were not in flight at any of these instants.
fn failures_outside<'r>(requests: &'r [Request], instants: &[Instant]) -> Vec<&'r Request> {
    let failed = requests.iter().filter(|request| request.failure.is_some());
    let in_flight = |request: &Request| {
        instants.iter().any(|instant| (request.started..=request.ended).contains(instant))
    };
    let unexpected: Vec<_> = failed.clone().filter(|request| !in_flight(request)).collect();
    eprintln!(
        "{} requests, {} failed in flight, {} others failed, the slowest took {:?}",
        requests.len(),
        failed.count() - unexpected.len(),
        unexpected.len(),
        requests.iter().map(|request| request.ended - request.started).max()
    );
    unexpected
}

/// Also without health checks, a back end that hangs costs `first_byte_timeout` at most. The next back end gets the
/// ClientHello and the bytes behind it.
#[test]
fn a_silent_backend_is_skipped() {
    let lab = Lab::new();
    let silent = snisplit_tests::stream::listen(&lab, snisplit_tests::lab::backend(8001));
    let answering = snisplit_tests::stream::listen(&lab, snisplit_tests::lab::backend(8002));
    for engine in ENGINES {
        let route = "a.test=10.91.2.2:8001,10.91.2.2:8002";
        let flags = ["--engine", engine, "--route", route, "--first-byte-timeout", "200ms"];
        let agent = Agent::start(&lab, &flags);
        let client = connect(&lab, agent::address());
        let hello = ClientHello::new().sni(b"a.test").encode();
        write(&client, &[&hello[..], b"early data"].concat());
        let unanswered = snisplit_tests::stream::accept(&silent);
        assert_eq!(read_exact(&unanswered, hello.len()), hello);
        let backend = snisplit_tests::stream::accept(&answering);
        assert_eq!(read_exact(&backend, hello.len()), hello);
        assert_eq!(read_all(&unanswered), b"", "only one back end gets early data");
        write(&backend, b"hello yourself");
        assert_eq!(read_exact(&client, 14), b"hello yourself");
        assert_eq!(read_exact(&backend, 10), b"early data");
        shutdown_write(&client);
        assert_eq!(read_all(&backend), b"");
        shutdown_write(&backend);
        assert_eq!(read_all(&client), b"");
        let record = agent.next_record();
        assert_eq!(record["bytes_up"], hello.len() + 10, "{record}");
        assert_eq!(record["backend"], "10.91.2.2:8002");
        let failures = "snisplit_backend_connect_failures_total{backend=\"10.91.2.2:8001\"}";
        assert_eq!(agent.metric(&lab, failures), 1.0);
    }
}

/// Both sockets have keepalive probes too.
#[test]
fn user_timeout_ends_a_flow_on_a_dead_link() {
    for engine in SOCKET_ENGINES {
        let flags = ["--keepalive", "33s", "--user-timeout", "1s"];
        let flow = Flow::open_with(engine, &flags);
        let mut ss = Command::new("ss");
        let done =
            flow.lab().in_proxy(|| ss.args(["-tnoH", "state", "established"]).output()).unwrap();
        let timers = String::from_utf8_lossy(&done.stdout).into_owned();
        assert_eq!(timers.matches("timer:(keepalive,3").count(), 2, "{timers}");
        flow.lab().set_backend_link(false);
        write(&flow.client, b"into the void");
        let (received, end) = snisplit_tests::stream::read_to_end_or_error(&flow.client);
        assert_eq!((received, end), (vec![], Err(std::io::ErrorKind::ConnectionReset)));
        let record = flow.agent.next_record();
        assert_eq!(record["outcome"], "backend_reset", "{record}");
    }
}
