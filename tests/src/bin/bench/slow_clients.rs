//! Good clients among 10,000 bad ones: a third says nothing, a third drips a byte a second, a third
//! sends the beginning of a giant hello. The same agent is measured in peace first, in every round.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::lab::Lab;
use snisplit_tests::wait::{sleep_for, wait_until};

use crate::load::Load;
use crate::measurement::measure;

const SLOW_CLIENTS: usize = 10_000;
const LOAD: Load = Load::Connections(32);

pub(crate) fn run(lab: &Lab, hello: &[u8], rounds: u64, time: Duration) -> Value {
    Value::Array((0..rounds).map(|_| round(lab, hello, time)).collect())
}

fn round(lab: &Lab, hello: &[u8], time: Duration) -> Value {
    let limits = [
        "--client-hello-timeout",
        "5m",
        "--max-pending-handshakes",
        "20000",
        "--max-connections-per-source",
        "20000",
    ];
    let route = ["--route", "a.test=10.91.2.2:8001"];
    let agent = Agent::start_without_telemetry(lab, &[&limits[..], &route].concat());
    let rate = || measure(lab, LOAD, (agent::address(), hello), time).rate(LOAD);
    let (quiet, before) = (rate(), agent.resident_bytes());
    let slow_clients = connect_slow_clients(lab);
    wait_until("the agent to have let them all in", || {
        (agent.open_descriptors("socket:") > SLOW_CLIENTS).then_some(())
    });
    let over = AtomicBool::new(false);
    let rate_under_attack = thread::scope(|scope| {
        scope.spawn(|| send_slowly(&slow_clients, &over));
        let rate_under_attack = rate();
        over.store(true, Ordering::Relaxed);
        rate_under_attack
    });
    let memory = agent.resident_bytes();
    println!(
        "{SLOW_CLIENTS} bad clients: {quiet:.0} -> {rate_under_attack:.0} /s, {} MB",
        memory >> 20
    );
    json!({ "quiet": quiet, "besieged": rate_under_attack, "resident_quiet": before, "resident": memory })
}

fn connect_slow_clients(lab: &Lab) -> Vec<TcpStream> {
    let giant = ClientHello::new().sni(b"a.test").padded_to(60_000).encode();
    let connect = |number| {
        let mut stream = TcpStream::connect(agent::address()).unwrap();
        if number % 3 == 2 {
            // All but its last bytes.
            stream.set_nonblocking(true).unwrap();
            let _full_buffer = stream.write(&giant[..giant.len() - 10]);
        }
        stream
    };
    lab.in_client(|| (0..SLOW_CLIENTS).map(connect).collect())
}

/// A byte a second for each second one in three.
fn send_slowly(slow_clients: &[TcpStream], over: &AtomicBool) {
    let hello = ClientHello::new().sni(b"a.test").padded_to(4_000).encode();
    for byte in hello.chunks(1) {
        for mut stream in slow_clients.iter().skip(1).step_by(3) {
            let _full_buffer = stream.write(byte);
        }
        for _ in 0..20 {
            if over.load(Ordering::Relaxed) {
                return;
            }
            sleep_for(Duration::from_millis(50));
        }
    }
}
