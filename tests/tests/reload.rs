//! Reload: new connections follow the new file at once, running ones stay, a broken file changes
//! nothing.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::lab::{Lab, PROXY, backend};
use snisplit_tests::stream::{
    accept, connect, listen, read_all, read_exact, shutdown_write, write,
};
use snisplit_tests::wait::{sleep_for, wait_until};

/// A config file that is rewritten as the tests go.
struct Setup {
    path: PathBuf,
    lab: Lab,
}

impl Setup {
    fn new(routes: &[(&str, u16)]) -> Self {
        let lab = Lab::new();
        let setup = Self { path: lab.dir().join("snisplit.toml"), lab };
        setup.write(routes, &[443]);
        setup
    }

    fn write(&self, routes: &[(&str, u16)], ports: &[u16]) {
        let mut text = String::new();
        for port in ports {
            text += &format!("[[listener]]\naddress = \"0.0.0.0:{port}\"\n");
        }
        for (name, port) in routes {
            text += &format!("[[route]]\nsni = [\"{name}\"]\nbackends = [\"10.91.2.2:{port}\"]\n");
        }
        fs::write(&self.path, text).unwrap();
    }

    /// Greets on an address and checks who gets it.
    #[track_caller]
    fn assert_routed_to(&self, to: SocketAddr, name: &str, who: Option<&TcpListener>) {
        let client = connect(&self.lab, to);
        let hello = ClientHello::new().sni(name.as_bytes()).encode();
        write(&client, &hello);
        shutdown_write(&client);
        match who {
            Some(listener) => assert_eq!(read_all(&accept(listener)), hello),
            None => assert_eq!(read_all(&client), [21, 3, 3, 0, 2, 2, 112]),
        }
    }
}

fn wait_for_reloads(agent: &Agent, times: usize) {
    wait_until("the reload", || (agent.log_count("reloaded") >= times).then_some(()));
}

#[test]
fn new_connections_follow_and_running_flows_stay() {
    let setup = Setup::new(&[("a.test", 8001), ("gone.test", 8001)]);
    let (a, b) = (listen(&setup.lab, backend(8001)), listen(&setup.lab, backend(8002)));
    let agent = Agent::start_with_config(&setup.lab, &setup.path, &[]);
    let client = connect(&setup.lab, agent::address());
    let hello = ClientHello::new().sni(b"gone.test").encode();
    write(&client, &hello);
    let running = accept(&a);
    assert_eq!(read_exact(&running, hello.len()), hello);

    setup.write(&[("a.test", 8002), ("new.test", 8002)], &[443, 444]);
    agent.signal(Signal::HUP);
    wait_for_reloads(&agent, 1);
    let message = "routes=2 added=[\"new.test\"] removed=[\"gone.test\"] changed=[\"a.test\"]";
    assert!(agent.log().contains(message), "{}", agent.log());
    let second_port = (PROXY, 444).into();
    setup.assert_routed_to(agent::address(), "a.test", Some(&b));
    setup.assert_routed_to(second_port, "new.test", Some(&b));
    setup.assert_routed_to(agent::address(), "gone.test", None);
    write(&client, b"still here");
    assert_eq!(read_exact(&running, 10), b"still here");

    setup.write(&[("a.test", 8001)], &[444]);
    agent.signal(Signal::HUP);
    wait_for_reloads(&agent, 2);
    setup.assert_routed_to(second_port, "a.test", Some(&a));
    wait_until("the first port to close", || {
        setup.lab.in_client(|| TcpStream::connect(agent::address())).err()
    });
    write(&client, b" and here");
    assert_eq!(read_exact(&running, 9), b" and here");
}

#[test]
fn a_broken_file_changes_nothing_and_says_why() {
    let setup = Setup::new(&[("a.test", 8001)]);
    let a = listen(&setup.lab, backend(8001));
    let agent = Agent::start_with_config(&setup.lab, &setup.path, &[]).allow_warnings();
    let good = fs::read_to_string(&setup.path).unwrap();
    let failed = "snisplit_config_reloads_total{result=\"failed\"}";
    let taken = "[[listener]]\naddress = \"127.0.0.1:9901\"\n";
    for (count, broken, why) in [
        (1.0, good.replace("sni", "sin"), "unknown key `sin`"),
        (2.0, good.clone() + "[[route]", "unclosed"),
        (3.0, good.clone() + taken, "cannot listen on 127.0.0.1:9901"),
    ] {
        fs::write(&setup.path, broken).unwrap();
        agent.signal(Signal::HUP);
        wait_until("the refusal", || (agent.metric(&setup.lab, failed) == count).then_some(()));
        assert!(agent.log().contains(why), "{}", agent.log());
        setup.assert_routed_to(agent::address(), "a.test", Some(&a));
    }
    fs::write(&setup.path, good).unwrap();
    agent.signal(Signal::HUP);
    wait_for_reloads(&agent, 1);
}

#[test]
fn a_watched_file_needs_no_signal() {
    let setup = Setup::new(&[("a.test", 8001)]);
    let b = listen(&setup.lab, backend(8002));
    let agent = Agent::start_with_config(&setup.lab, &setup.path, &["--watch"]);
    let next = setup.path.with_extension("next");
    let text = fs::read_to_string(&setup.path).unwrap().replace("8001", "8002");
    fs::write(&next, text).unwrap();
    fs::rename(next, &setup.path).unwrap();
    wait_for_reloads(&agent, 1);
    setup.assert_routed_to(agent::address(), "a.test", Some(&b));
}

/// The other form of the access log, and its file opened anew for logrotate.
#[test]
fn a_text_access_log_is_reopened_by_name() {
    let setup = Setup::new(&[("a.test", 8001)]);
    let a = listen(&setup.lab, backend(8001));
    let (log, moved) = (setup.lab.dir().join("log"), setup.lab.dir().join("log.1"));
    let flags = ["--access-log-format", "text", "--access-log", log.to_str().unwrap()];
    let agent = Agent::start_without_access_log(&setup.lab, &setup.path, &flags);
    let line = |path: &PathBuf| {
        setup.assert_routed_to(agent::address(), "a.test", Some(&a));
        let whole = |text: &String| text.ends_with("outcome=closed\n");
        wait_until("a line", || fs::read_to_string(path).ok().filter(whole))
    };
    let first = line(&log);
    // A flow that ends in the instant of its hand-over goes down the ladder.
    let says = |engine: &str| first.contains(&format!(" engine={engine} "));
    assert!(
        first.contains(" sni=a.test ") && (says(&agent::default_engine()) || says("splice")),
        "{first}"
    );
    assert!(!first.contains("alert="), "what is not known is left out: {first}");
    fs::rename(&log, &moved).unwrap();
    agent.signal(Signal::HUP);
    wait_for_reloads(&agent, 1);
    assert_eq!(line(&log).lines().count(), 1);
    assert_eq!(fs::read_to_string(&moved).unwrap(), first);
}

/// 1,000 reloads under 200 new connections a second: none fails, no flow is cut, memory is stable.
#[test]
fn a_thousand_reloads_under_load() {
    let setup = Setup::new(&[("a.test", 8001)]);
    let listener = listen(&setup.lab, backend(8001));
    let agent = Agent::start_with_config(&setup.lab, &setup.path, &[]);
    let hello = ClientHello::new().sni(b"a.test").encode();
    let running = connect(&setup.lab, agent::address());
    write(&running, &hello);
    let running_backend = accept(&listener);
    listener.set_nonblocking(false).unwrap();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let warm_resident_bytes = thread::scope(|scope| {
        scope.spawn(|| serve(&listener, &stop));
        let over = StopOnDrop(&setup.lab, &stop);
        let load = scope.spawn(|| generate_load(&setup.lab, &hello, &served, &stop));
        let mut warm = 0;
        for count in 1..=1_000 {
            setup.write(&[("a.test", 8001), (&format!("n{}.test", count % 7), 8001)], &[443]);
            agent.signal(Signal::HUP);
            wait_for_reloads(&agent, count);
            assert!(!load.is_finished(), "a connection failed at reload {count}");
            if count == 100 {
                warm = agent.resident_bytes();
            }
        }
        wait_until("enough connections", || (served.load(Ordering::Relaxed) > 200).then_some(()));
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap();
        drop(over);
        warm
    });
    assert!(
        agent.resident_bytes() < warm_resident_bytes + (8 << 20),
        "{warm_resident_bytes} -> {}",
        agent.resident_bytes()
    );
    write(&running, b"never cut");
    assert_eq!(read_exact(&running_backend, hello.len() + 9)[hello.len()..], *b"never cut");
}

/// Ends the load and the back end, also when the test fails.
struct StopOnDrop<'a>(&'a Lab, &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        // Lets the back end's accept return.
        drop(self.0.in_backends(|| TcpStream::connect(backend(8001))));
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let (stream, _) = listener.accept().unwrap();
        write(&stream, b"ok");
    }
}

/// 200 connections a second, as far as their round trips allow.
fn generate_load(lab: &Lab, hello: &[u8], served: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let client = connect(lab, agent::address());
        write(&client, hello);
        assert_eq!(read_exact(&client, 2), b"ok");
        served.fetch_add(1, Ordering::Relaxed);
        sleep_for(Duration::from_millis(5));
    }
}
