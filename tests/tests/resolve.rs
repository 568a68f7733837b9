//! Names of back ends: kept for their TTL, asked again after it, and not lost with the name server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::dns::{self, Dns};
use snisplit_tests::hello::Hello;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{connect, finish, listen, read_all, write};
use snisplit_tests::wait::until;

const OTHER: &str = "10.91.2.3";
const STALE: &str = "snisplit_dns_stale_total{name=\"fleeting.internal\"}";

/// A lab with a listener on each of two addresses, and an agent that goes by name.
struct Scene {
    dns: Dns,
    agent: Agent,
    listeners: [std::net::TcpListener; 2],
    lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let other: IpAddr = OTHER.parse().unwrap();
        lab.add_backend_address(other);
        let listeners = [backend(8001), SocketAddr::new(other, 8001)].map(|at| listen(&lab, at));
        let dns = Dns::start(&lab, "internal");
        dns.set("lasting", 3600, "A", &["10.91.2.2"]);
        dns.set("fleeting", 1, "A", &["10.91.2.2"]);
        let routes =
            ["lasting", "fleeting"].map(|name| format!("{name}.test={name}.internal:8001"));
        let server = dns::address().to_string();
        let flags = ["--nameserver", &server, "--route", &routes[0], "--route", &routes[1]];
        let agent = Agent::start(&lab, &flags);
        Self { dns, agent, listeners, lab }
    }

    /// Which of the two addresses a connection comes to.
    fn reaches(&self, name: &str) -> usize {
        let hello = Hello::new().sni(format!("{name}.test").as_bytes()).bytes();
        let client = connect(&self.lab, agent::address());
        write(&client, &hello);
        finish(&client);
        let (place, stream) = until("a back end", || {
            self.listeners.iter().enumerate().find_map(|(place, listener)| {
                listener.set_nonblocking(true).unwrap();
                Some((place, listener.accept().ok()?.0))
            })
        });
        stream.set_nonblocking(false).unwrap();
        assert_eq!(read_all(&stream), hello);
        finish(&stream);
        let record = self.agent.record();
        assert_eq!(record["outcome"], "closed", "{record}");
        place
    }
}

#[test]
fn names_are_asked_again_when_their_ttl_is_over() {
    let scene = Scene::new();
    assert_eq!((scene.reaches("lasting"), scene.reaches("fleeting")), (0, 0));
    for name in ["lasting", "fleeting"] {
        scene.dns.set(name, 1, "A", &[OTHER]);
    }
    until("the new address", || (scene.reaches("fleeting") == 1).then_some(()));
    assert_eq!(scene.reaches("lasting"), 0, "its TTL is an hour");
    // A reload begins with an empty cache.
    let reload = || scene.agent.signal(Signal::HUP);
    reload();
    until("the reload", || (scene.agent.logged("reloaded") == 1).then_some(()));
    assert_eq!(scene.reaches("lasting"), 1);
}

#[test]
fn a_name_that_is_gone_is_gone() {
    let scene = Scene::new();
    assert_eq!(scene.reaches("fleeting"), 0);
    scene.dns.set("fleeting", 1, "A", &[]);
    until("the name to be gone", || {
        let client = connect(&scene.lab, agent::address());
        write(&client, &Hello::new().sni(b"fleeting.test").bytes());
        finish(&client);
        let record = until("its end", || {
            let _back_end_that_ends_at_once = scene.listeners[0].accept();
            scene.agent.record_within(Duration::from_millis(5))
        });
        (record["reason"] == "no_backend").then_some(())
    });
}

/// A name server that hangs takes no working back end down and holds no connection up for long.
#[test]
fn the_last_known_address_outlives_the_name_server() {
    let scene = Scene::new();
    assert_eq!(scene.reaches("fleeting"), 0);
    kill_process(Pid::from_raw(scene.dns.pid().cast_signed()).unwrap(), Signal::STOP).unwrap();
    until("an answer from memory", || {
        assert_eq!(scene.reaches("fleeting"), 0);
        (scene.agent.metric(&scene.lab, STALE) > 0.0).then_some(())
    });
}
