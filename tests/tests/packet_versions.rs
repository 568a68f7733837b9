//! Pins of other ABI versions of the packet engine: `flows migrate` converts versions 2, 3 and 4, and the agent
//! does not touch pins of an unknown version.

//@ engines: named

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Output};

use aya::maps::{Array, HashMap, Map, MapData};
use rustix::process::Signal;
use snisplit_common::abi::packet::v3::{DirectionV3, FlowEntryV3};
use snisplit_common::abi::packet::{
    FlowEntry, PACKET_FLOWS_MAP, PACKET_INTERFACES_MAP, PACKET_TUPLES_MAP, PeerState,
    RESET_REQUESTS_MAP, Translation, Tuple, TupleEntry,
};
use snisplit_tests::agent::{Agent, binary_path};
use snisplit_tests::flow::Flow;
use snisplit_tests::kernel::bpftool;
use snisplit_tests::stream::{read_all, read_exact, shutdown_write, write};
use snisplit_tests::testbed::Peers;
use snisplit_tests::wait::wait_until;
use zerocopy::{IntoBytes as _, TryFromBytes as _};

/// Bytes of one write. Sequence numbers 20 writes ahead are outside of every window.
static BLOCK: [u8; 200_000] = [7; 200_000];

fn run_command(words: &[&str]) -> Output {
    Command::new(binary_path()).args(words).output().unwrap()
}

fn pin_path(instance: &str, map: &str) -> String {
    format!("/sys/fs/bpf/snisplit/{instance}/{map}")
}

/// Converts an entry to the layout of versions 2 and 3.
fn downgrade_flow_entry(entry: &FlowEntry) -> FlowEntryV3 {
    FlowEntryV3 {
        state: entry.state,
        started_at: entry.started_at,
        client_tuple: entry.client_tuple,
        backend_tuple: entry.backend_tuple,
        to_backend: downgrade_direction(
            &entry.to_backend,
            &entry.client_state,
            &entry.backend_state,
        ),
        to_client: downgrade_direction(&entry.to_client, &entry.backend_state, &entry.client_state),
        expected_acked: entry.expected_acked,
        route_id: entry.route_id,
        fallback_reason: entry.fallback_reason,
        reserved: 0,
    }
}

fn downgrade_direction(
    translation: &Translation,
    sender: &PeerState,
    receiver: &PeerState,
) -> DirectionV3 {
    DirectionV3 {
        packets: sender.packets,
        acked_bytes: receiver.acked_bytes,
        last_seen_ns: sender.last_seen_ns,
        seq_delta: translation.seq_delta,
        ack_delta: translation.ack_delta,
        tsval_delta: translation.tsval_delta,
        tsecr_delta: translation.tsecr_delta,
        min_tsecr: translation.min_tsecr,
        wscale_from: translation.wscale_from.into(),
        wscale_to: translation.wscale_to.into(),
        start_seq: 0,
        snd_nxt: sender.snd_nxt,
        acked_seq: receiver.acked_seq,
        rcv_wnd_end: receiver.rcv_wnd_end,
        fin_seq: sender.fin_seq,
        has_fin: sender.has_fin,
        strip_ecn: translation.strip_ecn.into(),
    }
}

/// Gives an instance's pins the content and the names that an agent of an older version would have left. The running
/// programs are those of this version, and keep their own maps.
fn downgrade_pins(instance: &str, version: u32) {
    if version <= 3 {
        downgrade_flow_table(instance);
    }
    if version == 2 {
        let counters = pin_path(instance, "packet_counters");
        fs::remove_file(&counters).unwrap();
        let made = ["type", "percpu_array", "key", "4", "value", "8", "entries", "9"];
        bpftool(&[&["map", "create", &counters][..], &made, &["name", "packet_counters"]].concat());
    }
    // The pin of an XDP program has its interface in its name. No interface has index 99.
    let abi = pin_path(instance, "packet_abi");
    bpftool(&["map", "pin", "pinned", &abi, &pin_path(instance, "xdp_99")]);
    for (new, old) in OLD_PINS {
        fs::rename(pin_path(instance, new), pin_path(instance, old)).unwrap();
    }
    set_pinned_version(instance, version);
}

/// Pins that version 5 has renamed: the present name, and the old one.
const OLD_PINS: [(&str, &str); 3] = [
    (RESET_REQUESTS_MAP, "packet_cuts"),
    (PACKET_INTERFACES_MAP, "packet_links"),
    ("xdp_99", "early_99"),
];

/// Replaces the array of flows by the hash map that versions 2 and 3 had, and clears the slots in the tuples.
fn downgrade_flow_table(instance: &str) {
    let path = pin_path(instance, PACKET_FLOWS_MAP);
    let table = Map::Array(MapData::from_pin(&path).unwrap());
    let table = Array::<_, [u8; size_of::<FlowEntry>()]>::try_from(table).unwrap();
    let entries =
        table.iter().flatten().map(|bytes| FlowEntry::try_read_from_bytes(&bytes).unwrap());
    let entries: Vec<FlowEntry> = entries.filter(|entry| *entry != FlowEntry::default()).collect();
    fs::remove_file(&path).unwrap();
    let size = size_of::<FlowEntryV3>().to_string();
    let made = ["type", "hash", "key", "8", "value", &size, "entries", "131072", "flags", "1"];
    bpftool(&[&["map", "create", &path][..], &made, &["name", PACKET_FLOWS_MAP]].concat());
    let map = Map::HashMap(MapData::from_pin(&path).unwrap());
    let mut map = HashMap::<_, u64, [u8; size_of::<FlowEntryV3>()]>::try_from(map).unwrap();
    for entry in entries {
        let old_entry = downgrade_flow_entry(&entry);
        map.insert(entry.id, old_entry.as_bytes().first_chunk().unwrap(), 0).unwrap();
    }
    let tuples = Map::HashMap(MapData::from_pin(pin_path(instance, PACKET_TUPLES_MAP)).unwrap());
    let mut tuples =
        HashMap::<_, [u8; size_of::<Tuple>()], [u8; size_of::<TupleEntry>()]>::try_from(tuples)
            .unwrap();
    let all: Vec<_> = tuples.iter().flatten().collect();
    for (tuple, bytes) in all {
        let entry = TupleEntry { slot: 0, ..TupleEntry::try_read_from_bytes(&bytes).unwrap() };
        tuples.insert(tuple, entry.as_bytes().first_chunk().unwrap(), 0).unwrap();
    }
}

/// Writes an ABI version into an instance's pins.
fn set_pinned_version(instance: &str, version: u32) {
    let path = pin_path(instance, "packet_abi");
    let version = version.to_ne_bytes().map(|byte| byte.to_string());
    let value: Vec<&str> = version.iter().map(String::as_str).collect();
    let key = ["map", "update", "pinned", &path, "key", "0", "0", "0", "0", "value"];
    bpftool(&[&key[..], &value].concat());
}

/// Flows of an older version continue while their pins are converted, and the next agent adopts them.
#[test]
fn flows_of_an_older_version_continue_after_migration() {
    for (version, flows) in [(2, 2), (3, 1), (4, 2)] {
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
        let noun = if flows == 1 { "flow" } else { "flows" };
        let converted = format!("{flows} {noun} of packet ABI version {version} converted");
        assert!(output.contains(&converted), "{done:?}");
        for (new, old) in OLD_PINS {
            let exists = |pin| fs::exists(pin_path(&instance, pin)).unwrap();
            assert!(exists(new) && !exists(old), "{old} is not renamed to {new}");
        }
        // The running programs forward these bytes. They find flows by the slots in the tuples, which the
        // downgrade to versions 2 and 3 has cleared. Slot 0 is right for the first flow only.
        let rounds = if other.is_none() || version > 3 { 20 } else { 0 };
        for (from, to) in [(client, backend), (backend, client)].repeat(rounds) {
            write(from, &BLOCK);
            assert_eq!(read_exact(to, BLOCK.len()), BLOCK);
        }
        let next = Agent::start(flow.lab(), &words);
        let adopted = format!("flows adopted flows={flows}");
        assert_eq!(next.log_count(&adopted), 1, "{}", next.log());
        assert_ends_in_order(&next, client, backend, rounds * BLOCK.len());
        if let Some(Peers { client, backend }) = &other {
            assert_ends_in_order(&next, client, backend, 0);
        }
    }
}

/// Asserts that an agent of this version does not start, and names the command that helps.
fn assert_refused(flow: &Flow, version: u32, words: &[&str]) {
    let words = [&["run", "--listen", "10.91.1.1:9443"], words].concat();
    let output = String::from_utf8(flow.lab().in_proxy(|| run_command(&words)).stderr).unwrap();
    assert!(output.contains(&format!("packet ABI version {version}")), "{output}");
    assert!(output.contains("`snisplit flows migrate`"), "{output}");
}

/// Sends two bytes up and ends both directions. `before` is the number of bytes that went up after the hello.
fn assert_ends_in_order(agent: &Agent, client: &TcpStream, backend: &TcpStream, before: usize) {
    write(client, b"up");
    assert_eq!(read_exact(backend, 2), b"up");
    for (side, other) in [(client, backend), (backend, client)] {
        shutdown_write(side);
        assert_eq!(read_all(other), b"");
    }
    let record = agent.next_record();
    assert_eq!((&record["outcome"], &record["bytes_up"]), (&"closed".into(), &(before + 2).into()));
}

/// An agent does not touch pins of an unknown ABI version, and names the command that helps.
#[test]
fn pins_of_another_version_are_refused() {
    let instance = "sp-other";
    let flow = Flow::open_with("packet", &["--instance", instance]);
    flow.agent.signal(Signal::KILL);
    let path = format!("/sys/fs/bpf/snisplit/{instance}/packet_abi");
    let version =
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
    assert!(output.contains("`snisplit flows purge`"), "{output}");
    let unknown = run_command(&["flows", "migrate", "--instance", instance]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("version 99"), "{unknown:?}");
    // Neither this agent nor the next one, which fails for another reason, ends the flow.
    write(&flow.client, b"still here");
    assert_eq!(read_exact(&flow.backend, 10), b"still here");
    set_pinned_version(instance, version as u32);
    let elsewhere = words.map(|word| if word == "10.91.1.1:9443" { "10.9.9.9:1" } else { word });
    let failed = flow.lab().in_proxy(|| run_command(&elsewhere));
    let output = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(output.contains("cannot listen on 10.9.9.9:1"), "{output}");
    write(&flow.backend, b"and here");
    assert_eq!(read_exact(&flow.client, 8), b"and here");
    let done = flow.lab().in_proxy(|| run_command(&["flows", "purge", "--instance", instance]));
    assert!(done.status.success(), "{done:?}");
}
