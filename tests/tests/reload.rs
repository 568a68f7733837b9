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
use snisplit_tests::hello::Hello;
use snisplit_tests::lab::{Lab, PROXY, backend};
use snisplit_tests::stream::{accept, connect, finish, listen, read_all, read_some, write};
use snisplit_tests::wait::{pass, until};

/// A config file that is rewritten as the tests go.
struct Setting {
    path: PathBuf,
    lab: Lab,
}

impl Setting {
    fn new(routes: &[(&str, u16)]) -> Self {
        let lab = Lab::new();
        let setting = Self { path: lab.folder().join("snisplit.toml"), lab };
        setting.write(routes, &[443]);
        setting
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
    fn goes_to(&self, to: SocketAddr, name: &str, who: Option<&TcpListener>) {
        let client = connect(&self.lab, to);
        let hello = Hello::new().sni(name.as_bytes()).bytes();
        write(&client, &hello);
        finish(&client);
        match who {
            Some(listener) => assert_eq!(read_all(&accept(listener)), hello),
            None => assert_eq!(read_all(&client), [21, 3, 3, 0, 2, 2, 112]),
        }
    }
}

fn reloaded(agent: &Agent, times: usize) {
    until("the reload", || (agent.logged("reloaded") >= times).then_some(()));
}

#[test]
fn new_connections_follow_and_running_flows_stay() {
    let setting = Setting::new(&[("a.test", 8001), ("gone.test", 8001)]);
    let (a, b) = (listen(&setting.lab, backend(8001)), listen(&setting.lab, backend(8002)));
    let agent = Agent::start_from(&setting.lab, &setting.path, &[]);
    let client = connect(&setting.lab, agent::address());
    let hello = Hello::new().sni(b"gone.test").bytes();
    write(&client, &hello);
    let running = accept(&a);
    assert_eq!(read_some(&running, hello.len()), hello);

    setting.write(&[("a.test", 8002), ("new.test", 8002)], &[443, 444]);
    agent.signal(Signal::HUP);
    reloaded(&agent, 1);
    let told = "routes=2 added=[\"new.test\"] removed=[\"gone.test\"] changed=[\"a.test\"]";
    assert!(agent.log().contains(told), "{}", agent.log());
    let second_port = (PROXY, 444).into();
    setting.goes_to(agent::address(), "a.test", Some(&b));
    setting.goes_to(second_port, "new.test", Some(&b));
    setting.goes_to(agent::address(), "gone.test", None);
    write(&client, b"still here");
    assert_eq!(read_some(&running, 10), b"still here");

    setting.write(&[("a.test", 8001)], &[444]);
    agent.signal(Signal::HUP);
    reloaded(&agent, 2);
    setting.goes_to(second_port, "a.test", Some(&a));
    until("the first port to close", || {
        setting.lab.client(|| TcpStream::connect(agent::address())).err()
    });
    write(&client, b" and here");
    assert_eq!(read_some(&running, 9), b" and here");
}

#[test]
fn a_broken_file_changes_nothing_and_says_why() {
    let setting = Setting::new(&[("a.test", 8001)]);
    let a = listen(&setting.lab, backend(8001));
    let agent = Agent::start_from(&setting.lab, &setting.path, &[]).may_warn();
    let good = fs::read_to_string(&setting.path).unwrap();
    let failed = "snisplit_reloads_total{result=\"failed\"}";
    let taken = "[[listener]]\naddress = \"127.0.0.1:9901\"\n";
    for (count, broken, why) in [
        (1.0, good.replace("sni", "sin"), "unknown field `sin`"),
        (2.0, good.clone() + "[[route]", "unclosed"),
        (3.0, good.clone() + taken, "cannot listen on 127.0.0.1:9901"),
    ] {
        fs::write(&setting.path, broken).unwrap();
        agent.signal(Signal::HUP);
        until("the refusal", || (agent.metric(&setting.lab, failed) == count).then_some(()));
        assert!(agent.log().contains(why), "{}", agent.log());
        setting.goes_to(agent::address(), "a.test", Some(&a));
    }
    fs::write(&setting.path, good).unwrap();
    agent.signal(Signal::HUP);
    reloaded(&agent, 1);
}

#[test]
fn a_watched_file_needs_no_signal() {
    let setting = Setting::new(&[("a.test", 8001)]);
    let b = listen(&setting.lab, backend(8002));
    let agent = Agent::start_from(&setting.lab, &setting.path, &["--watch"]);
    let next = setting.path.with_extension("next");
    let text = fs::read_to_string(&setting.path).unwrap().replace("8001", "8002");
    fs::write(&next, text).unwrap();
    fs::rename(next, &setting.path).unwrap();
    reloaded(&agent, 1);
    setting.goes_to(agent::address(), "a.test", Some(&b));
}

/// The other form of the access log, and its file opened anew for logrotate.
#[test]
fn a_text_log_follows_its_name() {
    let setting = Setting::new(&[("a.test", 8001)]);
    let a = listen(&setting.lab, backend(8001));
    let (log, moved) = (setting.lab.folder().join("log"), setting.lab.folder().join("log.1"));
    let flags = ["--access-log-format", "text", "--access-log", log.to_str().unwrap()];
    let agent = Agent::start_silent(&setting.lab, &setting.path, &flags);
    let line = |path: &PathBuf| {
        setting.goes_to(agent::address(), "a.test", Some(&a));
        let whole = |text: &String| text.ends_with("outcome=closed\n");
        until("a line", || fs::read_to_string(path).ok().filter(whole))
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
    reloaded(&agent, 1);
    assert_eq!(line(&log).lines().count(), 1);
    assert_eq!(fs::read_to_string(&moved).unwrap(), first);
}

/// 1,000 reloads under 200 new connections a second: none fails, no flow is cut, memory is stable.
#[test]
fn a_thousand_reloads_under_load() {
    let setting = Setting::new(&[("a.test", 8001)]);
    let listener = listen(&setting.lab, backend(8001));
    let agent = Agent::start_from(&setting.lab, &setting.path, &[]);
    let hello = Hello::new().sni(b"a.test").bytes();
    let running = connect(&setting.lab, agent::address());
    write(&running, &hello);
    let echo_of_running = accept(&listener);
    listener.set_nonblocking(false).unwrap();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let warm = thread::scope(|scope| {
        scope.spawn(|| answer(&listener, &stop));
        let over = Over(&setting.lab, &stop);
        let load = scope.spawn(|| ask(&setting.lab, &hello, &served, &stop));
        let mut warm = 0;
        for count in 1..=1_000 {
            setting.write(&[("a.test", 8001), (&format!("n{}.test", count % 7), 8001)], &[443]);
            agent.signal(Signal::HUP);
            reloaded(&agent, count);
            assert!(!load.is_finished(), "a connection failed at reload {count}");
            if count == 100 {
                warm = agent.resident();
            }
        }
        until("enough connections", || (served.load(Ordering::Relaxed) > 200).then_some(()));
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap();
        drop(over);
        warm
    });
    assert!(agent.resident() < warm + (8 << 20), "{warm} -> {}", agent.resident());
    write(&running, b"never cut");
    assert_eq!(read_some(&echo_of_running, hello.len() + 9)[hello.len()..], *b"never cut");
}

/// Ends the load and the back end, also when the test fails.
struct Over<'a>(&'a Lab, &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        // Lets the back end's accept return.
        drop(self.0.backends(|| TcpStream::connect(backend(8001))));
    }
}

fn answer(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let (stream, _) = listener.accept().unwrap();
        write(&stream, b"ok");
    }
}

/// 200 connections a second, as far as their round trips allow.
fn ask(lab: &Lab, hello: &[u8], served: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let client = connect(lab, agent::address());
        write(&client, hello);
        assert_eq!(read_some(&client, 2), b"ok");
        served.fetch_add(1, Ordering::Relaxed);
        pass(Duration::from_millis(5));
    }
}
