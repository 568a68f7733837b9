//! Good clients among 10,000 bad ones: a third says nothing, a third drips a byte a second, a third
//! sends the beginning of a giant hello. The same agent is measured in peace first, in every round.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::hello::Hello;
use snisplit_tests::lab::Lab;
use snisplit_tests::wait::{pass, until};

use crate::load::Load;
use crate::measured::measure;

const BAD: usize = 10_000;
const LOAD: Load = Load::Connections(32);

pub(crate) fn run(lab: &Lab, hello: &[u8], rounds: u64, time: Duration) -> Value {
    Value::Array((0..rounds).map(|_| round(lab, hello, time)).collect())
}

fn round(lab: &Lab, hello: &[u8], time: Duration) -> Value {
    let patient = ["--hello-timeout", "5m", "--max-peeking", "20000", "--per-source", "20000"];
    let route = ["--route", "a.test=10.91.2.2:8001"];
    let agent = Agent::start_plain(lab, &[&patient[..], &route].concat());
    let rate = || measure(lab, LOAD, (agent::address(), hello), time).rate(LOAD);
    let (quiet, before) = (rate(), agent.resident());
    let crowd = gather(lab);
    until("the agent to have let them all in", || {
        (agent.descriptors("socket:") > BAD).then_some(())
    });
    let over = AtomicBool::new(false);
    let besieged = thread::scope(|scope| {
        scope.spawn(|| drip(&crowd, &over));
        let besieged = rate();
        over.store(true, Ordering::Relaxed);
        besieged
    });
    let memory = agent.resident();
    println!("{BAD} bad clients: {quiet:.0} -> {besieged:.0} /s, {} MB", memory >> 20);
    json!({ "quiet": quiet, "besieged": besieged, "resident_quiet": before, "resident": memory })
}

fn gather(lab: &Lab) -> Vec<TcpStream> {
    let giant = Hello::new().sni(b"a.test").padded(60_000).bytes();
    let connect = |number| {
        let mut stream = TcpStream::connect(agent::address()).unwrap();
        if number % 3 == 2 {
            // All but its last bytes.
            stream.set_nonblocking(true).unwrap();
            let _full_buffer = stream.write(&giant[..giant.len() - 10]);
        }
        stream
    };
    lab.client(|| (0..BAD).map(connect).collect())
}

/// A byte a second for each second one in three.
fn drip(crowd: &[TcpStream], over: &AtomicBool) {
    let hello = Hello::new().sni(b"a.test").padded(4_000).bytes();
    for byte in hello.chunks(1) {
        for mut stream in crowd.iter().skip(1).step_by(3) {
            let _full_buffer = stream.write(byte);
        }
        for _ in 0..20 {
            if over.load(Ordering::Relaxed) {
                return;
            }
            pass(Duration::from_millis(50));
        }
    }
}
