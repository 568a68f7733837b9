//! What a person sees of the kernel's work with nothing but bpftool, by the README's own commands.

//@ engines: named

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snisplit_tests::agent::binary_path;
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::{bpftool, sockmap_entry_count};
use snisplit_tests::stream::{read_all, read_exact, shutdown_write, write};
use snisplit_tests::wait::wait_until;

/// The README's commands, for the instance of this test, with JSON for an answer.
fn readme_commands(instance: &str) -> Vec<Vec<String>> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let lines = readme.lines().filter_map(|line| line.strip_prefix("bpftool "));
    let words = |line: &str| {
        let command =
            line.split(" #").next().unwrap().replace("/default/", &format!("/{instance}/"));
        command.split_whitespace().map(str::to_owned).collect()
    };
    lines.map(words).collect()
}

fn run_bpftool(words: &[String]) -> Value {
    bpftool(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The values of the flows that are there.
fn map_values(command: &[String]) -> Vec<Value> {
    let seen = run_bpftool(command);
    seen.as_array().unwrap().iter().map(|one| one["formatted"]["value"].clone()).collect()
}

#[test]
fn the_commands_of_the_readme_show_the_flows() {
    let instance = "sp-bpftool";
    let all = readme_commands(instance);
    let [flows, counters, program, ..] = all.as_slice() else { panic!("{all:?}") };
    let flow = Flow::open_with("sockmap", &["--instance", instance]);
    write(&flow.client, b"up");
    assert_eq!(read_exact(&flow.backend, 2), b"up");
    write(&flow.backend, b"and down");
    assert_eq!(read_exact(&flow.client, 8), b"and down");

    let seen = map_values(flows);
    let of = |direction: &str| {
        let found = seen.iter().find(|value| value["direction"] == direction);
        found.unwrap_or_else(|| panic!("{seen:?}"))
    };
    let (up, down) = (of("Up"), of("Down"));
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(sockmap_entry_count(flow.agent.pid()), 6, "two in each map");
    assert_eq!(
        (&up["redirected_bytes"], &down["redirected_bytes"]),
        (&(flow.hello_len + 2).into(), &8.into())
    );
    assert_eq!((&up["state"], &down["state"]), (&"Redirecting".into(), &"Redirecting".into()));
    let port = flow.client.local_addr().unwrap().port();
    assert_eq!((&up["client_port"], &up["backend_port"]), (&port.into(), &8001.into()));
    let counted = run_bpftool(counters);
    assert!(counted.as_array().unwrap().len() >= 9, "{counted}");
    let shown = run_bpftool(program);
    assert!(shown.to_string().contains("sni_verdict"), "{shown}");

    shutdown_write(&flow.client);
    assert_eq!(read_all(&flow.backend), b"");
    shutdown_write(&flow.backend);
    assert_eq!(read_all(&flow.client), b"");
    flow.assert_record(2, 8, "closed");
    wait_until("the flow to be gone", || map_values(flows).is_empty().then_some(()));
}

#[test]
fn the_commands_of_the_readme_show_a_packet_flow() {
    let instance = "sp-bpftool-packet";
    let all = readme_commands(instance);
    let [.., tuples, record] = all.as_slice() else { panic!("{all:?}") };
    let flow = Flow::open_with("packet", &["--instance", instance]);
    let client = flow.client.local_addr().unwrap();
    let seen = map_values(tuples);
    assert_eq!(seen.len(), 2, "{seen:?}");
    let key = record.iter().position(|word| word == "key").unwrap();
    let slot = seen[0]["slot"].to_string();
    let record = [&record[..=key], &[slot], &record[key + 2..]].concat();
    let shown = run_bpftool(&record)["formatted"]["value"].clone();
    assert_eq!(shown["state"], "Offloaded", "{record:?}: {shown}");
    assert_eq!(shown["client_tuple"]["source_port"], client.port());
}

#[test]
fn pins_are_private_and_removed_with_their_agent() {
    let instance = "sp-pins";
    let flow = Flow::open_with("sockmap", &["--instance", instance]);
    let folder = Path::new("/sys/fs/bpf/snisplit").join(instance);
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let mut second = Command::new(binary_path());
    second.args(["run", "--listen", "127.0.0.1:0", "--route", "a.test=127.0.0.1:1"]);
    second.args(["--engine", "sockmap", "--instance", instance]);
    let output = second.output().unwrap();
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.contains("another snisplit runs as \"sp-pins\""), "{output}");
    shutdown_write(&flow.client);
    shutdown_write(&flow.backend);
    assert_eq!((read_all(&flow.client), read_all(&flow.backend)), (vec![], vec![]));
    flow.agent.signal(rustix::process::Signal::TERM);
    wait_until("the pins to be gone", || (!folder.exists()).then_some(()));
}
