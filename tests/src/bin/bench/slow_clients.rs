//! Connections of good clients while 10,000 slow clients are connected. A third of these send nothing, a third send a byte
//! per second, and a third send all but the end of a large ClientHello. Each round measures the agent without them first.

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

use crate::load::{Load, Target};
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
    let target = Target { address: agent::address(), hello };
    let rate = || measure(lab, LOAD, target, time).rate(LOAD);
    let (undisturbed, resident_undisturbed) = (rate(), agent.resident_bytes());
    let slow_clients = connect_slow_clients(lab);
    wait_until("the agent to accept all slow clients", || {
        (agent.open_descriptors("socket:") > SLOW_CLIENTS).then_some(())
    });
    let over = AtomicBool::new(false);
    let under_attack = thread::scope(|scope| {
        scope.spawn(|| send_slowly(&slow_clients, &over));
        let under_attack = rate();
        over.store(true, Ordering::Relaxed);
        under_attack
    });
    let resident = agent.resident_bytes();
    println!(
        "{SLOW_CLIENTS} slow clients: {undisturbed:.0} -> {under_attack:.0} /s, {} MB",
        resident / 1_000_000
    );
    json!({ "undisturbed": undisturbed, "under_attack": under_attack,
        "resident_undisturbed": resident_undisturbed, "resident": resident })
}

fn connect_slow_clients(lab: &Lab) -> Vec<TcpStream> {
    let large_hello = ClientHello::new().sni(b"a.test").padded_to(60_000).encode();
    let connect = |number| {
        let mut stream = TcpStream::connect(agent::address()).unwrap();
        if number % 3 == 2 {
            stream.set_nonblocking(true).unwrap();
            let _full_buffer = stream.write(&large_hello[..large_hello.len() - 10]);
        }
        stream
    };
    lab.in_client(|| (0..SLOW_CLIENTS).map(connect).collect())
}

/// Sends a byte per second on every third connection until `over` is set.
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
