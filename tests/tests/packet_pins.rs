//! What the packet engine leaves among the pins: for people, for the next agent, for `snisplit flows`.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use snisplit_tests::agent::binary;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::bpftool;
use snisplit_tests::spliced::record;
use snisplit_tests::stream::{ending, finish, read_all, read_some, write};
use snisplit_tests::wait::until;

fn ask(words: &[&str]) -> Output {
    Command::new(binary()).args(words).output().unwrap()
}

fn json(words: &[&str]) -> Value {
    let done = ask(&[words, &["--json"]].concat());
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"))
}

#[test]
fn people_see_a_flow() {
    let instance = "sp-packets";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Flow { client, backend, .. } = &flow;
    write(client, b"up");
    assert_eq!(read_some(backend, 2), b"up");
    // What is acknowledged counts, and that may take its time.
    write(backend, b"down");
    assert_eq!(read_some(client, 4), b"down");
    let flows = until("the bytes to be acknowledged", || {
        let flows = json(&["flows", "--instance", instance]);
        (flows[0]["up"] == 2 && flows[0]["down"] == flow.answer + 4).then_some(flows)
    });
    let [one] = flows.as_array().unwrap().as_slice() else { panic!("{flows}") };
    assert_eq!(one["client"], client.local_addr().unwrap().to_string());
    assert_eq!((&one["backend"], &one["route"]), (&"10.91.2.2:8001".into(), &"a.test".into()));
    assert_eq!((&one["engine"], &one["up_state"]), (&"packet".into(), &"spliced".into()));

    let status = json(&["status", "--instance", instance]);
    let [kernel] = status["kernel"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&kernel["engine"], &kernel["flows"]), (&"packet".into(), &1.into()));

    let pinned = |map: &str| {
        let path = format!("/sys/fs/bpf/snisplit/{instance}/{map}");
        bpftool(&["map", "dump", "pinned", &path])
    };
    let (_, seen) = record(instance, &pinned("packet_tuples")[0]);
    assert_eq!((&seen["state"], &seen["fallback_reason"]), (&"Offloaded".into(), &"None".into()));
    assert_eq!(seen["client_tuple"]["source_port"], client.local_addr().unwrap().port());
    assert!(pinned("packet_counters").as_array().unwrap().len() >= 8);

    finish(client);
    assert_eq!(read_all(backend), b"");
    finish(backend);
    assert_eq!(read_all(client), b"");
    flow.ends(2, 4, "closed");
    let flows = json(&["flows", "--instance", instance]);
    assert_eq!(flows[0]["up_state"], "ended", "kept for what is repeated");
}

#[test]
fn what_an_agent_has_left_is_dropped_on_demand() {
    let instance = "sp-left";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let Flow { client, backend, agent, .. } = &flow;
    let drop = ["flows", "drop", "--instance", instance];
    let refused = ask(&drop);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the agent \"sp-left\" runs; stop it first"), "{said}");
    agent.signal(Signal::KILL);
    let done = until("the agent to be dead", || {
        let done = flow.lab().proxy(|| ask(&drop));
        done.status.success().then_some(done)
    });
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("1 flows ended"), "{done:?}");
    for side in [client, backend] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    assert!(!Path::new("/sys/fs/bpf/snisplit/sp-left").exists());
}

#[test]
fn a_flow_is_cut_on_demand() {
    let instance = "sp-cut";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let (other, other_backend) = flow.another();
    let client = flow.client.local_addr().unwrap().to_string();
    let done = ask(&["flows", "cut", &client, "--instance", instance]);
    assert!(String::from_utf8_lossy(&done.stdout).starts_with("1 flows will be cut"), "{done:?}");
    for side in [&flow.client, &flow.backend] {
        assert_eq!(ending(side), (vec![], Err(ErrorKind::ConnectionReset)));
    }
    flow.ends(0, 0, "cut");
    write(&other, b"not this one");
    assert_eq!(read_some(&other_backend, 12), b"not this one");
    let done = ask(&["flows", "cut", &client, "--instance", instance]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("no flow of"), "{said}");
}
