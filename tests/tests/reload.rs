//! Reloads: new connections use the new configuration, running flows are not affected, and a broken file changes nothing.

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

/// A lab with a configuration file, which tests rewrite.
struct Setup {
    path: PathBuf,
    lab: Lab,
}

impl Setup {
    /// Writes a file with a back end port for each name.
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

    /// Sends a ClientHello to `address`. Asserts that `backend` gets it, or that it is rejected.
    #[track_caller]
    fn assert_routed_to(&self, address: SocketAddr, name: &str, backend: Option<&TcpListener>) {
        let client = connect(&self.lab, address);
        let hello = ClientHello::new().sni(name.as_bytes()).encode();
        write(&client, &hello);
        shutdown_write(&client);
        match backend {
            Some(listener) => assert_eq!(read_all(&accept(listener)), hello),
            None => assert_eq!(read_all(&client), [21, 3, 3, 0, 2, 2, 112]),
        }
    }
}

fn wait_for_reloads(agent: &Agent, times: usize) {
    wait_until("the reload", || (agent.log_count("configuration reloaded") >= times).then_some(()));
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
fn a_broken_file_changes_nothing_and_is_logged() {
    let setup = Setup::new(&[("a.test", 8001)]);
    let a = listen(&setup.lab, backend(8001));
    let agent = Agent::start_with_config(&setup.lab, &setup.path, &[]).allow_warnings();
    let good = fs::read_to_string(&setup.path).unwrap();
    let failed = "snisplit_config_reloads_total{result=\"failed\"}";
    let used_address = "[[listener]]\naddress = \"127.0.0.1:9901\"\n";
    for (count, broken, why) in [
        (1.0, good.replace("sni", "sin"), "unknown key `sin`"),
        (2.0, good.clone() + "[[route]", "unclosed"),
        (3.0, good.clone() + used_address, "cannot listen on 127.0.0.1:9901"),
    ] {
        fs::write(&setup.path, broken).unwrap();
        agent.signal(Signal::HUP);
        wait_until("a failed reload", || (agent.metric(&setup.lab, failed) == count).then_some(()));
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

/// The text form of the access log. SIGHUP opens the file again, for logrotate.
#[test]
fn a_text_access_log_is_reopened_by_name() {
    let setup = Setup::new(&[("a.test", 8001)]);
    let a = listen(&setup.lab, backend(8001));
    let (log, moved) = (setup.lab.dir().join("log"), setup.lab.dir().join("log.1"));
    let flags = ["--access-log-format", "text", "--access-log", log.to_str().unwrap()];
    let agent = Agent::start_without_access_log(&setup.lab, &setup.path, &flags);
    let line = |path: &PathBuf| {
        setup.assert_routed_to(agent::address(), "a.test", Some(&a));
        let is_complete = |text: &String| text.ends_with("outcome=closed\n");
        wait_until("a line", || fs::read_to_string(path).ok().filter(is_complete))
    };
    let first = line(&log);
    // Splice carries a flow that ends before its takeover.
    let has_engine = |engine: &str| first.contains(&format!(" engine={engine} "));
    assert!(first.contains(" sni=a.test "), "{first}");
    assert!(has_engine(&agent::default_engine()) || has_engine("splice"), "{first}");
    assert!(!first.contains("alert="), "fields without a value are left out: {first}");
    setup.assert_routed_to(agent::address(), "b.test", None);
    let both = wait_until("a line of the rejected connection", || {
        fs::read_to_string(&log).ok().filter(|text| text.ends_with("outcome=rejected\n"))
    });
    assert!(both.contains(" alert=unrecognized_name "), "{both}");
    fs::rename(&log, &moved).unwrap();
    agent.signal(Signal::HUP);
    wait_for_reloads(&agent, 1);
    assert_eq!(line(&log).lines().count(), 1);
    assert_eq!(fs::read_to_string(&moved).unwrap(), both);
}

/// 1,000 reloads with up to 200 new connections per second: no connection fails, a running flow goes on, and memory does
/// not grow.
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
        let stop_on_panic = StopOnDrop { lab: &setup.lab, stop: &stop };
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
        drop(stop_on_panic);
        warm
    });
    assert!(
        agent.resident_bytes() < warm_resident_bytes + (8 << 20),
        "{warm_resident_bytes} -> {}",
        agent.resident_bytes()
    );
    write(&running, b"still open");
    let received = read_exact(&running_backend, hello.len() + 10);
    assert_eq!(received[hello.len()..], *b"still open");
}

/// Stops the load and the back end when it is dropped, also by a panic.
struct StopOnDrop<'a> {
    lab: &'a Lab,
    stop: &'a AtomicBool,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The back end's accept returns.
        drop(self.lab.in_backends(|| TcpStream::connect(backend(8001))));
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let (stream, _) = listener.accept().unwrap();
        write(&stream, b"ok");
    }
}

/// Opens up to 200 connections per second until `stop` is set.
fn generate_load(lab: &Lab, hello: &[u8], served: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let client = connect(lab, agent::address());
        write(&client, hello);
        assert_eq!(read_exact(&client, 2), b"ok");
        served.fetch_add(1, Ordering::Relaxed);
        sleep_for(Duration::from_millis(5));
    }
}
