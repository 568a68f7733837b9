//! Peers that have disappeared without a FIN or a reset: the packet engine has to notice that a flow is dead, for no
//! socket sends keepalive probes.

//@ engines: named

use std::fs::read_link;
use std::io::ErrorKind;

use rustix::process::Signal;
use snisplit_tests::agent::{self, Agent};
use snisplit_tests::kernel::kernel_at_least;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::offloaded_flow::reset_flow;
use snisplit_tests::record_skip;
use snisplit_tests::stream::{listen, read_to_end_or_error};
use snisplit_tests::testbed::Peers;

const FLAGS: [&str; 4] = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001"];
const SKIP_REASON: &str = "execve(2) does not change a program's clock before Linux 6.2";

/// Starts an agent in a time namespace whose monotonic clock is three hours ahead (time_namespaces(7)). `sh` runs
/// `preparation` first.
fn start_with_shifted_clock(lab: &Lab, preparation: &str) -> Agent {
    let script = format!("{preparation} exec \"$@\"");
    let args = ["unshare", "--time", "--monotonic", "10800", "--mount", "--", "sh", "-ec", &script];
    let agent = Agent::start_with_wrapper(lab, &[&args[..], &["sh"]].concat(), &FLAGS);
    let clock = |process: &str| read_link(format!("/proc/{process}/ns/time")).unwrap();
    assert_ne!(clock(&agent.pid().to_string()), clock("self"), "the agent needs another clock");
    agent
}

/// Opens flows and kills their agent.
fn flows_of_a_killed_agent<const N: usize>(lab: &Lab) -> [Peers; N] {
    let agent = Agent::start(lab, &FLAGS);
    let listener = listen(lab, backend(8001));
    let connect = |_| Peers::connect_offloaded(lab, agent::address(), &listener);
    let flows = std::array::from_fn(connect);
    agent.signal(Signal::KILL);
    drop(agent.allow_warnings());
    flows
}

/// `/proc/PID/timens_offsets` is covered, so the agent does not learn that its clock is three hours ahead of the
/// programs' clock. It then finds that the peers of the adopted flow have been silent for more than two hours.
#[test]
fn a_flow_with_dead_peers_is_reset() {
    if !kernel_at_least(6, 2) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::new();
    let [flow] = flows_of_a_killed_agent(&lab);
    let agent = start_with_shifted_clock(&lab, "mount --bind /dev/null /proc/$$/timens_offsets;");
    for side in [&flow.client, &flow.backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    let record = agent.next_record();
    let fields =
        ["outcome", "reason", "engine"].map(|key| record[key].as_str().unwrap().to_owned());
    assert_eq!(fields, ["client_reset", "adopted", "packet"], "{record}");
}

#[test]
fn a_clock_offset_is_not_taken_for_idle_time() {
    if !kernel_at_least(6, 2) {
        return record_skip(SKIP_REASON);
    }
    let lab = Lab::new();
    let [kept, reset] = flows_of_a_killed_agent(&lab);
    let agent = start_with_shifted_clock(&lab, "");
    // The agent looks for silent flows just before it looks for requested resets.
    reset_flow(&lab, &reset.client);
    assert_eq!(read_to_end_or_error(&reset.client), (vec![], Err(ErrorKind::ConnectionReset)));
    assert_eq!(agent.next_record()["outcome"], "operator_reset");
    kept.transfer_both_ways(100_000);
    assert_eq!(agent.next_record()["outcome"], "closed");
}
