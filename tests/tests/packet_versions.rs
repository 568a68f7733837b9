//! Pins of other versions of the packet engine: what it understands goes on, and it does not touch the rest.

//@ engines: named

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Output};

use aya::maps::{Array, HashMap, Map, MapData};
use rustix::process::Signal;
use snisplit_tests::agent::{Agent, binary_path};
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::bpftool;
use snisplit_tests::stream::{read_all, read_exact, shutdown_write, write};
use snisplit_tests::wait::wait_until;

/// Of 20 more are in no window.
static BLOCK: [u8; 200_000] = [7; 200_000];

fn run_command(words: &[&str]) -> Output {
    Command::new(binary_path()).args(words).output().unwrap()
}

fn pin_path(instance: &str, map: &str) -> String {
    format!("/sys/fs/bpf/snisplit/{instance}/{map}")
}

/// A record as versions before 4 had it, of one of this version's (`abi::packet::Splice`).
fn encode_flow_entry_v3(record: &[u8; 384]) -> [u8; 264] {
    let word = |at: usize| &record[at..at + 4];
    // Numbers that were as wide as a word.
    let byte = |at: usize| [record[at], 0, 0, 0];
    let (client, backend) = (192, 320);
    let direction_v3 = |way: usize, own: usize, other: usize| {
        let counts =
            [&record[own..own + 8], &record[other + 16..other + 24], &record[own + 8..own + 16]];
        let scales = [byte(way + 20), byte(way + 21)].concat();
        let of_window = [word(own + 24), word(other + 36), word(other + 40)];
        let of_end = [word(own + 28), word(own + 32)];
        [
            &counts.concat()[..],
            &record[way..way + 20],
            &scales,
            &[0; 4],
            &of_window.concat(),
            &of_end.concat(),
            &byte(way + 22),
        ]
        .concat()
    };
    let parts = [
        &record[..8],
        &record[136..144],
        &record[8..44],
        &record[68..104],
        &direction_v3(44, client, backend),
        &direction_v3(104, backend, client),
        &record[144..156],
        &[0; 4],
    ];
    parts.concat().try_into().unwrap()
}

/// Makes an instance's pins what an agent of version 2 or 3 would have left: flows in a hash map, and in version
/// 2 one counter less. The programs that run are still this version's, and have their own maps.
fn downgrade_pins(instance: &str, version: u32) {
    let path = pin_path(instance, "packet_flows");
    let table = MapData::from_pin(&path).unwrap();
    let table = Array::<_, [u8; 384]>::try_from(Map::Array(table)).unwrap();
    let records: Vec<[u8; 384]> = table.iter().flatten().filter(|one| *one != [0; 384]).collect();
    fs::remove_file(&path).unwrap();
    let made = ["type", "hash", "key", "8", "value", "264", "entries", "131072", "flags", "1"];
    bpftool(&[&["map", "create", &path][..], &made, &["name", "packet_flows"]].concat());
    let map = MapData::from_pin(&path).unwrap();
    let mut map = HashMap::<_, u64, [u8; 264]>::try_from(Map::HashMap(map)).unwrap();
    for record in records {
        let number = u64::from_ne_bytes(record[128..136].try_into().unwrap());
        map.insert(number, encode_flow_entry_v3(&record), 0).unwrap();
    }
    let tuples = MapData::from_pin(pin_path(instance, "packet_tuples")).unwrap();
    let mut tuples = HashMap::<_, [u8; 36], [u8; 16]>::try_from(Map::HashMap(tuples)).unwrap();
    let all: Vec<_> = tuples.iter().flatten().collect();
    for (tuple, mut leg) in all {
        // Was not there.
        leg[12..].fill(0);
        tuples.insert(tuple, leg, 0).unwrap();
    }
    if version == 2 {
        let counters = pin_path(instance, "packet_counters");
        fs::remove_file(&counters).unwrap();
        let made = ["type", "percpu_array", "key", "4", "value", "8", "entries", "9"];
        bpftool(&[&["map", "create", &counters][..], &made, &["name", "packet_counters"]].concat());
    }
    set_pinned_version(instance, version);
}

/// Says of an instance's pins that they are of this version.
fn set_pinned_version(instance: &str, version: u32) {
    let path = pin_path(instance, "packet_abi");
    let version = version.to_ne_bytes().map(|byte| byte.to_string());
    let value: Vec<&str> = version.iter().map(String::as_str).collect();
    let key = ["map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"];
    bpftool(&[&key[..], &value].concat());
}

/// Flows run on, whatever happens to pins, and the next agent follows them from where they are by then.
#[test]
fn flows_of_an_older_version_continue_after_migration() {
    for (version, flows) in [(2, 2), (3, 1)] {
        let instance = format!("sp-older{version}");
        let flow = Flow::open_with("packet", &["--instance", &instance]);
        let other = (flows > 1).then(|| flow.connect_another());
        let Flow { client, backend, .. } = &flow;
        let migrate = || run_command(&["flows", "migrate", "--instance", &instance]);
        let output = String::from_utf8(migrate().stderr).unwrap();
        assert!(output.contains("runs; stop it first"), "{output}");
        flow.agent.signal(Signal::KILL);
        wait_until("the agent to be dead", || migrate().status.success().then_some(()));
        downgrade_pins(&instance, version);
        let words =
            ["--engine", "packet", "--route", "a.test=10.91.2.2:8001", "--instance", &instance];
        assert_refused(&flow, version, &words);
        let done = migrate();
        let output = String::from_utf8_lossy(&done.stdout).into_owned();
        let all = format!("{flows} flows, of packet ABI version {version}, can go on");
        assert!(output.contains(&all), "{done:?}");
        // Seen by nobody but the programs that are still there; those of this version know where they have this
        // flow, which is where it is now, but not where others have come to be.
        let rounds = if other.is_none() { 20 } else { 0 };
        for (from, to) in [(client, backend), (backend, client)].repeat(rounds) {
            write(from, &BLOCK);
            assert_eq!(read_exact(to, BLOCK.len()), BLOCK);
        }
        let next = Agent::start(flow.lab(), &words);
        let adopted = format!("flows of a former agent go on flows={flows}");
        assert_eq!(next.log_count(&adopted), 1, "{}", next.log());
        assert_ends_in_order(&next, (client, backend), rounds * BLOCK.len());
        if let Some((client, backend)) = &other {
            assert_ends_in_order(&next, (client, backend), 0);
        }
    }
}

/// An agent of this version says what can be done, and does nothing.
fn assert_refused(flow: &Flow, version: u32, words: &[&str]) {
    let words = [&["run", "--listen", "10.91.1.1:9443"], words].concat();
    let output = String::from_utf8(flow.lab().in_proxy(|| run_command(&words)).stderr).unwrap();
    assert!(output.contains(&format!("packet ABI version {version}")), "{output}");
    assert!(output.contains("`snisplit flows migrate`"), "{output}");
}

/// Two bytes go up, then both peers end it. So many bytes went up before, behind the hello.
fn assert_ends_in_order(agent: &Agent, (client, backend): (&TcpStream, &TcpStream), before: usize) {
    write(client, b"up");
    assert_eq!(read_exact(backend, 2), b"up");
    for (side, other) in [(client, backend), (backend, client)] {
        shutdown_write(side);
        assert_eq!(read_all(other), b"");
    }
    let record = agent.next_record();
    assert_eq!((&record["outcome"], &record["bytes_up"]), (&"closed".into(), &(before + 2).into()));
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
    set_pinned_version(instance, 99);
    let args = ["run", "--listen", "10.91.1.1:9443", "--route", "a.test=10.91.2.2:1"];
    let words = [&args[..], &["--engine", "packet", "--instance", instance]].concat();
    let words: [&str; 9] = words.try_into().unwrap();
    let output = wait_until("the agent to be dead", || {
        let refused = flow.lab().in_proxy(|| run_command(&words));
        let output = String::from_utf8_lossy(&refused.stderr).into_owned();
        (!output.contains("another snisplit runs")).then_some(output)
    });
    assert!(output.contains("packet ABI version 99"), "{output}");
    assert!(output.contains("`snisplit flows drop`"), "{output}");
    let unknown = run_command(&["flows", "migrate", "--instance", instance]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("version 99"), "{unknown:?}");
    // The flow does not care. Nor for one that understands, and fails for another reason.
    write(&flow.client, b"still here");
    assert_eq!(read_exact(&flow.backend, 10), b"still here");
    set_pinned_version(instance, ours as u32);
    let elsewhere = words.map(|word| if word == "10.91.1.1:9443" { "10.9.9.9:1" } else { word });
    let failed = flow.lab().in_proxy(|| run_command(&elsewhere));
    let output = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(output.contains("cannot listen on 10.9.9.9:1"), "{output}");
    write(&flow.backend, b"and here");
    assert_eq!(read_exact(&flow.client, 8), b"and here");
    let done = flow.lab().in_proxy(|| run_command(&["flows", "purge", "--instance", instance]));
    assert!(done.status.success(), "{done:?}");
}
