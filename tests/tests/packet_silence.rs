//! Peers that are gone without a word: nobody keeps the connections of a spliced flow alive for them.

use std::fs::read_link;
use std::io::ErrorKind;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::is_since;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::skip;
use snisplit_tests::spliced::begin;
use snisplit_tests::stream::{ending, listen};

/// An agent whose clock is three hours ahead of the programs' (time_namespaces(7)) takes a flow over. Its
/// peers have been silent for longer than two hours then, and both hear that it has ended.
#[test]
fn hours_of_silence_end_a_flow() {
    const ROUTE: [&str; 4] = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
    if !is_since(6, 2) {
        return skip("execve(2) does not change a program's clock before Linux 6.2");
    }
    let lab = Lab::new();
    let agent = Agent::start(&lab, &ROUTE);
    let listener = listen(&lab, backend(8001));
    let (client, server) = begin(&lab, agent::address(), &listener);
    agent.signal(Signal::KILL);
    drop(agent.may_warn());
    let later = ["unshare", "--time", "--monotonic", "10800", "--"];
    let agent = Agent::start_under(&lab, &later, &ROUTE);
    let clock = |process: &str| read_link(format!("/proc/{process}/ns/time")).unwrap();
    assert_ne!(clock(&agent.pid().to_string()), clock("self"), "or this tests nothing");
    for side in [&client, &server] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = agent.record();
    let told = ["outcome", "reason", "engine"].map(|key| record[key].as_str().unwrap().to_owned());
    assert_eq!(told, ["client_reset", "adopted", "packet"], "{record}");
}
