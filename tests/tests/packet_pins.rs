//! Pins of the packet engine, as `snisplit status`, `snisplit flows` and bpftool show and use them.

//@ engines: named

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use snisplit_common::abi::packet::{PACKET_COUNTER_COUNT, PACKET_COUNTERS_MAP, PACKET_TUPLES_MAP};
use snisplit_tests::agent::binary_path;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::{dump_map, pin_dir};
use snisplit_tests::offloaded_flow::lookup_flow_entry;
use snisplit_tests::stream::{read_all, read_exact, read_to_end_or_error, shutdown_write, write};
use snisplit_tests::testbed::Peers;
use snisplit_tests::wait::wait_until;

fn run_command(args: &[&str]) -> Output {
    Command::new(binary_path()).args(args).output().unwrap()
}

fn run_json(args: &[&str]) -> Value {
    let done = run_command(&[args, &["--output", "json"]].concat());
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"))
}

#[test]
fn flows_status_and_bpftool_show_a_flow() {
    let instance = "sp-packets";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Flow { client, backend, .. } = &flow;
    write(client, b"up");
    assert_eq!(read_exact(backend, 2), b"up");
    // Bytes count once they are acknowledged, which may take a while.
    write(backend, b"down");
    assert_eq!(read_exact(client, 4), b"down");
    let flows = wait_until("the bytes to be acknowledged", || {
        let flows = run_json(&["flows", "--instance", instance]);
        (flows[0]["bytes_up"] == 2 && flows[0]["bytes_down"] == flow.answer_len + 4)
            .then_some(flows)
    });
    let [one] = flows.as_array().unwrap().as_slice() else { panic!("{flows}") };
    assert_eq!(one["client"], client.local_addr().unwrap().to_string());
    assert_eq!((&one["backend"], &one["route"]), (&"10.91.2.2:8001".into(), &"a.test".into()));
    assert_eq!((&one["engine"], &one["state_up"]), (&"packet".into(), &"offloaded".into()));

    let status = run_json(&["status", "--instance", instance]);
    let [engine] = status["engines"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&engine["engine"], &engine["flows"]), (&"packet".into(), &1.into()));
    assert_eq!(engine["counters"][0]["id"], "forwarded");

    let tuples = dump_map(&flow.agent.pin_path(PACKET_TUPLES_MAP));
    let entry = lookup_flow_entry(instance, &tuples[0]).entry;
    assert_eq!((&entry["state"], &entry["fallback_reason"]), (&"Offloaded".into(), &"None".into()));
    assert_eq!(entry["client_tuple"]["source_port"], client.local_addr().unwrap().port());
    let counters = dump_map(&flow.agent.pin_path(PACKET_COUNTERS_MAP));
    assert_eq!(counters.len(), PACKET_COUNTER_COUNT);

    shutdown_write(client);
    assert_eq!(read_all(backend), b"");
    shutdown_write(backend);
    assert_eq!(read_all(client), b"");
    flow.assert_record(2, 4, "closed");
    let flows = run_json(&["flows", "--instance", instance]);
    assert_eq!(
        flows[0]["state_up"], "half_closed",
        "the entry stays, to translate what the peers may send again"
    );
}

#[test]
fn flows_of_a_dead_agent_are_purged_on_request() {
    let instance = "sp-left";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Flow { client, backend, agent, .. } = &flow;
    let purge = ["flows", "purge", "--instance", instance];
    let refused = run_command(&purge);
    assert!(!refused.status.success());
    let output = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(output.contains("the agent \"sp-left\" runs; stop it first"), "{output}");
    agent.signal(Signal::KILL);
    let done = wait_until("the agent to be dead", || {
        let done = flow.lab().in_proxy(|| run_command(&purge));
        done.status.success().then_some(done)
    });
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("1 flow reset"), "{done:?}");
    for side in [client, backend] {
        assert_eq!(read_to_end_or_error(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert!(!Path::new(&pin_dir(instance)).exists());
}

#[test]
fn a_flow_is_reset_on_request() {
    let instance = "sp-cut";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Peers { client: other, backend: other_backend } = flow.connect_another();
    let client = flow.client.local_addr().unwrap().to_string();
    let done = run_command(&["flows", "reset", &client, "--instance", instance]);
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("1 flow will be reset"), "{done:?}");
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
