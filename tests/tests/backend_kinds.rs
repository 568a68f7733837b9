//! Back ends that are reached in other ways, or not: unix sockets, hanging processes, dead links.

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

/// What the client and the back end of one flow over a unix socket are.
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
                // The client's side has ended, and the answer still comes.
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

/// unix(7) knows no reset, so the back end sees the end of stream: TLS tells that from an end.
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
            // Unread bytes make closing an error for the peer (unix_release_sock).
            drop(backend);
            let (_, end) = snisplit_tests::stream::read_to_end_or_error(&client);
            assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
            assert_eq!(agent.next_record()["outcome"], "backend_reset");
        });
    }
}

/// Bytes that wait to be read.
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

/// One request of a load: when it began and ended, and what curl said if it failed.
type Request = (Instant, Instant, Option<String>);

/// Clients that ask for a page, each time anew, as long as `act` runs.
fn request_during(lab: &Lab, clients: usize, act: impl FnOnce()) -> Vec<Request> {
    let over = AtomicBool::new(false);
    let requests = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let done = curl(lab, "https://a.test/", &[]);
                    let failed = (done.stdout != b"nginx here").then(|| format!("{done:?}"));
                    requests.lock().unwrap().push((begun, Instant::now(), failed));
                }
            });
        }
        act();
        over.store(true, Ordering::Relaxed);
    });
    requests.into_inner().unwrap()
}

/// Killed, restarted, stopped, continued: no client error but of requests that were under way.
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
        wait_until("the checks to notice", || (agent.metric(&lab, name) == value).then_some(()));
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
    let beyond = failures_outside(&requests, &instants);
    assert!(requests.len() > 50 && beyond.is_empty(), "{beyond:?}");
}

/// Requests that failed without being under way at one of these instants.
fn failures_outside<'r>(requests: &'r [Request], instants: &[Instant]) -> Vec<&'r Request> {
    let failed = requests.iter().filter(|(.., failed)| failed.is_some());
    let beyond: Vec<_> = failed
        .clone()
        .filter(|(begun, ended, _)| !instants.iter().any(|at| begun <= at && at <= ended))
        .collect();
    eprintln!(
        "{} requests, {} failed in flight, {} beyond that, the slowest took {:?}",
        requests.len(),
        failed.count() - beyond.len(),
        beyond.len(),
        requests.iter().map(|(begun, ended, _)| *ended - *begun).max()
    );
    beyond
}

/// Without checks too, a hanging back end costs no more than `first_byte_timeout`, and its hello is told
/// to the next one, with the bytes behind it, once.
#[test]
fn a_silent_backend_is_skipped() {
    let lab = Lab::new();
    let silent = snisplit_tests::stream::listen(&lab, snisplit_tests::lab::backend(8001));
    let talks = snisplit_tests::stream::listen(&lab, snisplit_tests::lab::backend(8002));
    for engine in ENGINES {
        let route = "a.test=10.91.2.2:8001,10.91.2.2:8002";
        let flags = ["--engine", engine, "--route", route, "--first-byte-timeout", "200ms"];
        let agent = Agent::start(&lab, &flags);
        let client = connect(&lab, agent::address());
        let hello = ClientHello::new().sni(b"a.test").encode();
        write(&client, &[&hello[..], b"early data"].concat());
        let unanswered = snisplit_tests::stream::accept(&silent);
        assert_eq!(read_exact(&unanswered, hello.len()), hello);
        let backend = snisplit_tests::stream::accept(&talks);
        assert_eq!(read_exact(&backend, hello.len()), hello);
        assert_eq!(read_all(&unanswered), b"", "early data is shown to one back end only");
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

/// `keepalive` on both legs; `user_timeout` ends a flow whose bytes nobody acknowledges.
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
