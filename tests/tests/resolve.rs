//! Names of back ends: kept for their TTL, asked again after it, and not lost with the name server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::dns::{self, DnsServer};
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{connect, listen, read_all, shutdown_write, write};
use snisplit_tests::wait::wait_until;

const OTHER_BACKEND: &str = "10.91.2.3";
const STALE_ANSWERS: &str = "snisplit_dns_stale_answers_total{host=\"fleeting.internal\"}";

/// A lab with a listener on each of two addresses, and an agent that goes by name.
struct Setup {
    dns: DnsServer,
    agent: Agent,
    listeners: [std::net::TcpListener; 2],
    lab: Lab,
}

impl Setup {
    fn new() -> Self {
        let lab = Lab::new();
        let other: IpAddr = OTHER_BACKEND.parse().unwrap();
        lab.add_backend_address(other);
        let listeners = [backend(8001), SocketAddr::new(other, 8001)].map(|at| listen(&lab, at));
        let dns = DnsServer::start(&lab, "internal");
        dns.set_records("lasting", 3600, "A", &["10.91.2.2"]);
        dns.set_records("fleeting", 1, "A", &["10.91.2.2"]);
        let routes =
            ["lasting", "fleeting"].map(|name| format!("{name}.test={name}.internal:8001"));
        let server = dns::address().to_string();
        let flags = ["--nameserver", &server, "--route", &routes[0], "--route", &routes[1]];
        let agent = Agent::start(&lab, &flags);
        Self { dns, agent, listeners, lab }
    }

    /// Which of the two addresses a connection comes to.
    fn backend_reached(&self, name: &str) -> usize {
        let hello = ClientHello::new().sni(format!("{name}.test").as_bytes()).encode();
        let client = connect(&self.lab, agent::address());
        write(&client, &hello);
        shutdown_write(&client);
        let (index, stream) = wait_until("a back end", || {
            self.listeners.iter().enumerate().find_map(|(place, listener)| {
                listener.set_nonblocking(true).unwrap();
                Some((place, listener.accept().ok()?.0))
            })
        });
        stream.set_nonblocking(false).unwrap();
        assert_eq!(read_all(&stream), hello);
        shutdown_write(&stream);
        let record = self.agent.next_record();
        assert_eq!(record["outcome"], "closed", "{record}");
        index
    }
}

#[test]
fn names_are_resolved_again_after_their_ttl() {
    let setup = Setup::new();
    assert_eq!((setup.backend_reached("lasting"), setup.backend_reached("fleeting")), (0, 0));
    for name in ["lasting", "fleeting"] {
        setup.dns.set_records(name, 1, "A", &[OTHER_BACKEND]);
    }
    wait_until("the new address", || (setup.backend_reached("fleeting") == 1).then_some(()));
    assert_eq!(setup.backend_reached("lasting"), 0, "its TTL is an hour");
    // A reload begins with an empty cache.
    let reload = || setup.agent.signal(Signal::HUP);
    reload();
    wait_until("the reload", || (setup.agent.log_count("reloaded") == 1).then_some(()));
    assert_eq!(setup.backend_reached("lasting"), 1);
}

#[test]
fn a_deleted_name_has_no_backend() {
    let setup = Setup::new();
    assert_eq!(setup.backend_reached("fleeting"), 0);
    setup.dns.set_records("fleeting", 1, "A", &[]);
    wait_until("the name to be gone", || {
        let client = connect(&setup.lab, agent::address());
        write(&client, &ClientHello::new().sni(b"fleeting.test").encode());
        shutdown_write(&client);
        let record = wait_until("its end", || {
            let _back_end_that_ends_at_once = setup.listeners[0].accept();
            setup.agent.next_record_within(Duration::from_millis(5))
        });
        (record["reason"] == "no_backend").then_some(())
    });
}

/// A name server that hangs takes no working back end down and holds no connection up for long.
#[test]
fn the_last_known_address_is_used_while_the_name_server_hangs() {
    let setup = Setup::new();
    assert_eq!(setup.backend_reached("fleeting"), 0);
    kill_process(Pid::from_raw(setup.dns.pid().cast_signed()).unwrap(), Signal::STOP).unwrap();
    wait_until("an answer from memory", || {
        assert_eq!(setup.backend_reached("fleeting"), 0);
        (setup.agent.metric(&setup.lab, STALE_ANSWERS) > 0.0).then_some(())
    });
}
