//! Peers that are gone without a word: nobody keeps the connections of a spliced flow alive for them.

use std::fs::read_link;
use std::io::ErrorKind;
use std::net::TcpStream;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::is_since;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::skip;
use snisplit_tests::spliced::{begin, carry, cut};
use snisplit_tests::stream::{ending, listen};

const ROUTE: [&str; 4] = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
const WHY_NOT: &str = "execve(2) does not change a program's clock before Linux 6.2";

/// An agent in a time namespace whose clock is three hours ahead (time_namespaces(7)), started by `sh` with
/// these words.
fn later(lab: &Lab, words: &str) -> Agent {
    let script = format!("{words} exec \"$@\"");
    let told = ["unshare", "--time", "--monotonic", "10800", "--mount", "--", "sh", "-ec", &script];
    let agent = Agent::start_under(lab, &[&told[..], &["sh"]].concat(), &ROUTE);
    let clock = |process: &str| read_link(format!("/proc/{process}/ns/time")).unwrap();
    assert_ne!(clock(&agent.pid().to_string()), clock("self"), "or this tests nothing");
    agent
}

/// Flows of an agent that has died since.
fn left<const N: usize>(lab: &Lab) -> [(TcpStream, TcpStream); N] {
    let agent = Agent::start(lab, &ROUTE);
    let listener = listen(lab, backend(8001));
    let flows = std::array::from_fn(|_| begin(lab, agent::address(), &listener));
    agent.signal(Signal::KILL);
    drop(agent.may_warn());
    flows
}

/// An agent that does not know that its clock is three hours ahead of the programs' takes a flow over. Its
/// peers have been silent for longer than two hours then, and both hear that it has ended.
#[test]
fn hours_of_silence_end_a_flow() {
    if !is_since(6, 2) {
        return skip(WHY_NOT);
    }
    let lab = Lab::new();
    let [(client, server)] = left(&lab);
    let agent = later(&lab, "mount --bind /dev/null /proc/$$/timens_offsets;");
    for side in [&client, &server] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = agent.record();
    let told = ["outcome", "reason", "engine"].map(|key| record[key].as_str().unwrap().to_owned());
    assert_eq!(told, ["client_reset", "adopted", "packet"], "{record}");
}

/// One that knows does not take its flows for silent ones.
#[test]
fn hours_of_a_clock_are_no_silence() {
    if !is_since(6, 2) {
        return skip(WHY_NOT);
    }
    let lab = Lab::new();
    let [stays, goes] = left(&lab);
    let agent = later(&lab, "");
    // Whoever looks for what is to be cut has looked for silence just before.
    cut(&lab, &goes.0);
    assert_eq!(ending(&goes.0), (vec![], Err(ErrorKind::ConnectionReset)));
    assert_eq!(agent.record()["outcome"], "cut");
    carry(&stays, 100_000);
    assert_eq!(agent.record()["outcome"], "closed");
}
