//! What the packet engine leaves among the pins: for people, for the next agent, for `snisplit flows`.

//@ engines: named

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use snisplit_tests::agent::binary_path;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::bpftool;
use snisplit_tests::offloaded_flow::lookup_flow_entry;
use snisplit_tests::stream::{read_all, read_exact, read_to_end_or_error, shutdown_write, write};
use snisplit_tests::wait::wait_until;

fn run_command(words: &[&str]) -> Output {
    Command::new(binary_path()).args(words).output().unwrap()
}

fn run_json(words: &[&str]) -> Value {
    let done = run_command(&[words, &["--output", "json"]].concat());
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"))
}

#[test]
fn flows_status_and_bpftool_show_a_flow() {
    let instance = "sp-packets";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Flow { client, backend, .. } = &flow;
    write(client, b"up");
    assert_eq!(read_exact(backend, 2), b"up");
    // What is acknowledged counts, and that may take its time.
    write(backend, b"down");
    assert_eq!(read_exact(client, 4), b"down");
    let flows = wait_until("the bytes to be acknowledged", || {
        let flows = run_json(&["flows", "--instance", instance]);
        (flows[0]["up"] == 2 && flows[0]["down"] == flow.answer_len + 4).then_some(flows)
    });
    let [one] = flows.as_array().unwrap().as_slice() else { panic!("{flows}") };
    assert_eq!(one["client"], client.local_addr().unwrap().to_string());
    assert_eq!((&one["backend"], &one["route"]), (&"10.91.2.2:8001".into(), &"a.test".into()));
    assert_eq!((&one["engine"], &one["up_state"]), (&"packet".into(), &"offloaded".into()));

    let status = run_json(&["status", "--instance", instance]);
    let [kernel] = status["kernel"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&kernel["engine"], &kernel["flows"]), (&"packet".into(), &1.into()));

    let pinned = |map: &str| {
        let path = format!("/sys/fs/bpf/snisplit/{instance}/{map}");
        bpftool(&["map", "dump", "pinned", &path])
    };
    let (_, seen) = lookup_flow_entry(instance, &pinned("packet_tuples")[0]);
    assert_eq!((&seen["state"], &seen["fallback_reason"]), (&"Offloaded".into(), &"None".into()));
    assert_eq!(seen["client_tuple"]["source_port"], client.local_addr().unwrap().port());
    assert!(pinned("packet_counters").as_array().unwrap().len() >= 8);

    shutdown_write(client);
    assert_eq!(read_all(backend), b"");
    shutdown_write(backend);
    assert_eq!(read_all(client), b"");
    flow.assert_record(2, 4, "closed");
    let flows = run_json(&["flows", "--instance", instance]);
    assert_eq!(flows[0]["up_state"], "half_closed", "kept for what is repeated");
}

#[test]
fn flows_of_a_dead_agent_are_purged_on_request() {
    let instance = "sp-left";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Flow { client, backend, agent, .. } = &flow;
    let drop = ["flows", "purge", "--instance", instance];
    let refused = run_command(&drop);
    assert!(!refused.status.success());
    let output = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(output.contains("the agent \"sp-left\" runs; stop it first"), "{output}");
    agent.signal(Signal::KILL);
    let done = wait_until("the agent to be dead", || {
        let done = flow.lab().in_proxy(|| run_command(&drop));
        done.status.success().then_some(done)
    });
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("1 flows ended"), "{done:?}");
    for side in [client, backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert!(!Path::new("/sys/fs/bpf/snisplit/sp-left").exists());
}

#[test]
fn a_flow_is_reset_on_request() {
    let instance = "sp-cut";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let (other, other_backend) = flow.connect_another();
    let client = flow.client.local_addr().unwrap().to_string();
    let done = run_command(&["flows", "reset", &client, "--instance", instance]);
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("1 flows will be cut"), "{done:?}");
    for side in [&flow.client, &flow.backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    flow.assert_record(0, 0, "operator_reset");
    write(&other, b"not this one");
    assert_eq!(read_exact(&other_backend, 12), b"not this one");
    let done = run_command(&["flows", "reset", &client, "--instance", instance]);
    let output = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && output.contains("no flow of"), "{output}");
}
