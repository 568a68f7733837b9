//! What the packet engine leaves among the pins: for people, for the next agent, for `snisplit flows`.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;
use snisplit_tests::agent::{Agent, binary};
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::bpftool;
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
    let seen = pinned("packet_flows")[0]["formatted"]["value"].clone();
    assert_eq!((&seen["state"], &seen["why"]), (&"Spliced".into(), &"Unasked".into()));
    assert_eq!(seen["client"]["source_port"], client.local_addr().unwrap().port());
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

/// What an agent of ABI version 2 leaves: one counter less. Its flow runs on, whatever happens to pins.
#[test]
fn flows_of_an_older_version_go_on() {
    let instance = "sp-older";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let migrate = ["flows", "migrate", "--instance", instance];
    let said = String::from_utf8(ask(&migrate).stderr).unwrap();
    assert!(said.contains("the agent \"sp-older\" runs; stop it first"), "{said}");
    flow.agent.signal(Signal::KILL);
    let pins = format!("/sys/fs/bpf/snisplit/{instance}");
    let counters = format!("{pins}/packet_counters");
    let made = ["type", "percpu_array", "key", "4", "value", "8", "entries", "9"];
    std::fs::remove_file(&counters).unwrap();
    bpftool(&[&["map", "create", &counters][..], &made, &["name", "packet_counters"]].concat());
    tell_version(instance, 2);
    let words = ["--engine", "packet", "--route", "a.test=10.91.2.2:8001", "--instance", instance];
    let refused = [&["run", "--listen", "10.91.1.1:9443"][..], &words].concat();
    let said = until("the agent to be dead", || {
        let said = String::from_utf8(flow.lab().proxy(|| ask(&refused)).stderr).unwrap();
        said.contains("packet ABI version 2").then_some(said)
    });
    assert!(said.contains("`snisplit flows migrate`"), "{said}");
    let done = ask(&migrate);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("1 flows, of packet ABI version 2, can go on"), "{done:?}");
    let next = Agent::start(flow.lab(), &words);
    assert_eq!(next.logged("flows of a former agent go on flows=1"), 1, "{}", next.log());
    write(&flow.client, b"up");
    assert_eq!(read_some(&flow.backend, 2), b"up");
    for (side, other) in [(&flow.client, &flow.backend), (&flow.backend, &flow.client)] {
        finish(side);
        assert_eq!(read_all(other), b"");
    }
    assert_eq!(next.record()["outcome"], "closed");
    assert_eq!(json(&["status", "--instance", instance])["kernel"][0]["engine"], "packet");
}

/// Says of an instance's pins that they are of this version.
fn tell_version(instance: &str, version: u32) {
    let path = format!("/sys/fs/bpf/snisplit/{instance}/packet_abi");
    let version = version.to_ne_bytes().map(|byte| byte.to_string());
    let value: Vec<&str> = version.iter().map(String::as_str).collect();
    let key = ["map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"];
    bpftool(&[&key[..], &value].concat());
}

/// An agent of another ABI does not touch what it does not understand, and says what can be done.
#[test]
fn pins_of_another_version_are_refused() {
    let instance = "sp-other";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    flow.agent.signal(Signal::KILL);
    let path = format!("/sys/fs/bpf/snisplit/{instance}/packet_abi");
    let ours =
        bpftool(&["map", "dump", "pinned", &path])[0]["formatted"]["value"].as_u64().unwrap();
    tell_version(instance, 99);
    let told = ["run", "--listen", "10.91.1.1:9443", "--route", "a.test=10.91.2.2:1"];
    let words = [&told[..], &["--engine", "packet", "--instance", instance]].concat();
    let words: [&str; 9] = words.try_into().unwrap();
    let said = until("the agent to be dead", || {
        let refused = flow.lab().proxy(|| ask(&words));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        (!said.contains("another snisplit runs")).then_some(said)
    });
    assert!(said.contains("packet ABI version 99"), "{said}");
    assert!(said.contains("`snisplit flows drop`"), "{said}");
    let unknown = ask(&["flows", "migrate", "--instance", instance]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("version 99"), "{unknown:?}");
    // The flow does not care. Nor for one that understands, and fails for another reason.
    write(&flow.client, b"still here");
    assert_eq!(read_some(&flow.backend, 10), b"still here");
    tell_version(instance, ours as u32);
    let elsewhere = words.map(|word| if word == "10.91.1.1:9443" { "10.9.9.9:1" } else { word });
    let failed = flow.lab().proxy(|| ask(&elsewhere));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("cannot listen on 10.9.9.9:1"), "{said}");
    write(&flow.backend, b"and here");
    assert_eq!(read_some(&flow.client, 8), b"and here");
    let done = flow.lab().proxy(|| ask(&["flows", "drop", "--instance", instance]));
    assert!(done.status.success(), "{done:?}");
}
