//! Peers that are gone without a word: nobody keeps the connections of a spliced flow alive for them.

//@ engines: named

use std::fs::read_link;
use std::io::ErrorKind;
use std::net::TcpStream;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::kernel_at_least;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::{connect_offloaded, reset_flow, transfer_both_ways};
use snisplit_tests::record_skip;
use snisplit_tests::stream::{listen, read_to_end_or_error};

const FLAGS: [&str; 4] = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
const SKIP_REASON: &str = "execve(2) does not change a program's clock before Linux 6.2";

/// An agent in a time namespace whose clock is three hours ahead (time_namespaces(7)), started by `sh` with
/// these words.
fn start_with_shifted_clock(lab: &Lab, words: &str) -> Agent {
    let script = format!("{words} exec \"$@\"");
    let args = ["unshare", "--time", "--monotonic", "10800", "--mount", "--", "sh", "-ec", &script];
    let agent = Agent::start_with_wrapper(lab, &[&args[..], &["sh"]].concat(), &FLAGS);
    let clock = |process: &str| read_link(format!("/proc/{process}/ns/time")).unwrap();
    assert_ne!(clock(&agent.pid().to_string()), clock("self"), "or this tests nothing");
    agent
}

/// Flows of an agent that has died since.
fn flows_of_a_killed_agent<const N: usize>(lab: &Lab) -> [(TcpStream, TcpStream); N] {
    let agent = Agent::start(lab, &FLAGS);
    let listener = listen(lab, backend(8001));
    let flows = std::array::from_fn(|_| connect_offloaded(lab, agent::address(), &listener));
    agent.signal(Signal::KILL);
    drop(agent.allow_warnings());
    flows
}

/// An agent that does not know that its clock is three hours ahead of the programs' takes a flow over. Its
/// peers have been silent for longer than two hours then, and both hear that it has ended.
#[test]
fn a_flow_with_dead_peers_is_reset() {
    if !kernel_at_least(6, 2) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::new();
    let [(client, server)] = flows_of_a_killed_agent(&lab);
    let agent = start_with_shifted_clock(&lab, "mount --bind /dev/null /proc/$$/timens_offsets;");
    for side in [&client, &server] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = agent.next_record();
    let fields =
        ["outcome", "reason", "engine"].map(|key| record[key].as_str().unwrap().to_owned());
    assert_eq!(fields, ["client_reset", "adopted", "packet"], "{record}");
}

/// One that knows does not take its flows for silent ones.
#[test]
fn a_clock_offset_is_not_taken_for_idle_time() {
    if !kernel_at_least(6, 2) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::new();
    let [stays, goes] = flows_of_a_killed_agent(&lab);
    let agent = start_with_shifted_clock(&lab, "");
    // Whoever looks for what is to be cut has looked for silence just before.
    reset_flow(&lab, &goes.0);
    assert_eq!(read_to_end_or_error(&goes.0), (vec![], Err(ErrorKind::ConnectionReset)));
    assert_eq!(agent.next_record()["outcome"], "operator_reset");
    transfer_both_ways(&stays, 100_000);
    assert_eq!(agent.next_record()["outcome"], "closed");
}
