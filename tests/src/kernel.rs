//! Counters and BPF maps of the kernel, as bpftool, ss and procfs show them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use aya::util::KernelVersion;
use serde_json::Value;
use snisplit_common::abi::packet::{PACKET_COUNTERS_MAP, Tuple, TupleEntry};
use snisplit_common::abi::sockmap::{COUNTERS_MAP, FLOWS_MAP, SOURCES_MAP, TARGETS_MAP};

pub use snisplit_common::abi::packet::PacketCounter;
pub use snisplit_common::abi::{Direction, sockmap::SockmapCounter};

use crate::lab::Lab;

/// Bytes of a key of the packet engine's tuple map.
pub type TupleBytes = [u8; size_of::<Tuple>()];
/// Bytes of a value of the packet engine's tuple map.
pub type TupleEntryBytes = [u8; size_of::<TupleEntry>()];

/// Whether this kernel has this version or a newer one.
pub fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(major, minor, 0)
}

/// JSON output of bpftool(8).
pub fn bpftool(args: &[&str]) -> Value {
    let mut command = Command::new("bpftool");
    let done = command.arg("-j").args(args).output().unwrap();
    assert!(done.status.success(), "bpftool {args:?}: {}", String::from_utf8_lossy(&done.stdout));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Folder of an instance's pins.
pub fn pin_dir(instance: &str) -> String {
    format!("/sys/fs/bpf/snisplit/{instance}")
}

/// Path of one pin of an instance.
pub fn pin_path(instance: &str, name: &str) -> String {
    format!("{}/{name}", pin_dir(instance))
}

/// Entries of a pinned map, as bpftool shows them.
pub fn dump_map(path: &str) -> Vec<Value> {
    let dump = bpftool(&["map", "dump", "pinned", path]);
    dump.as_array().unwrap_or_else(|| panic!("{dump}")).clone()
}

/// Values of a pinned map, with the field names of its BTF.
pub fn dump_values(path: &str) -> Vec<Value> {
    dump_map(path).into_iter().map(|entry| entry["formatted"]["value"].clone()).collect()
}

/// A counter of the sockmap engine, summed over all CPUs.
pub fn sockmap_counter(instance: &str, counter: SockmapCounter) -> u64 {
    sum_over_cpus(&pin_path(instance, COUNTERS_MAP), counter as usize)
}

/// A counter of the packet engine, summed over all CPUs.
pub fn packet_counter(instance: &str, counter: PacketCounter) -> u64 {
    sum_over_cpus(&pin_path(instance, PACKET_COUNTERS_MAP), counter as usize)
}

fn sum_over_cpus(path: &str, slot: usize) -> u64 {
    let values = dump_map(path)[slot]["formatted"]["values"].clone();
    values.as_array().unwrap().iter().map(|of_cpu| of_cpu["value"].as_u64().unwrap()).sum()
}

/// Fills a pinned tuple map with entries of no flow. The returned function removes them.
pub fn fill_tuple_map(path: &str) -> impl FnOnce() + use<> {
    let data = MapData::from_pin(path).unwrap();
    let mut map = HashMap::<_, TupleBytes, TupleEntryBytes>::try_from(Map::HashMap(data)).unwrap();
    let key = |number: u64| {
        let mut key = [0xff; size_of::<Tuple>()];
        key[..8].copy_from_slice(&(u64::MAX - number).to_ne_bytes());
        key
    };
    let value = [0; size_of::<TupleEntry>()];
    let inserted = (0..).find(|number| map.insert(key(*number), value, 0).is_err()).unwrap();
    assert!(inserted > 1_000, "{path} has room for {inserted} entries only");
    move || (0..inserted).for_each(|number| map.remove(&key(number)).unwrap())
}

/// A counter of the network namespace that the calling thread is in: `file` is a file of /proc/net, `group` the
/// first word of two of its lines, `name` a column.
pub fn proc_net_counter(file: &str, group: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find(|(column, _)| *column == name).unwrap().1.parse().unwrap()
}

/// Flow entries of the sockmap engine, one for each direction.
pub fn sockmap_flow_entries(instance: &str) -> Vec<Value> {
    dump_values(&pin_path(instance, FLOWS_MAP))
}

/// Number of entries in the maps of the sockmap engine that change with its flows.
pub fn sockmap_entry_count(pid: u32) -> usize {
    let maps: BTreeSet<String> = fdinfo_values(pid, "map_id:").collect();
    let is_flow_map = |id: &&String| {
        let map = bpftool(&["map", "show", "id", id]);
        [FLOWS_MAP, TARGETS_MAP, SOURCES_MAP].contains(&map["name"].as_str().unwrap_or_default())
    };
    let maps: Vec<&String> = maps.iter().filter(is_flow_map).collect();
    assert_eq!(maps.len(), 3, "{maps:?}");
    maps.iter().map(|id| bpftool(&["map", "dump", "id", id]).as_array().unwrap().len()).sum()
}

/// Id of the BPF program with this name that a process holds.
pub fn program_id(pid: u32, name: &str) -> String {
    let has_name = |id: &String| bpftool(&["prog", "show", "id", id])["name"] == name;
    let found = fdinfo_values(pid, "prog_id:").find(has_name);
    found.unwrap_or_else(|| panic!("process {pid} has no BPF program {name}"))
}

/// Values of a field in the descriptors of a process (proc_pid_fdinfo(5)).
fn fdinfo_values(pid: u32, field: &'static str) -> impl Iterator<Item = String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    descriptors.filter_map(move |descriptor| {
        let text = fs::read_to_string(descriptor.ok()?.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned())
    })
}

/// Bytes in the buffers of the proxy's TCP sockets, with the overhead of `sk_buff`: received, waiting to be sent,
/// and in the socket's backlog (`r`, `w` and `bl` of `skmem` in ss(8)).
pub fn socket_memory(lab: &Lab) -> u64 {
    let done = lab.in_proxy(|| Command::new("ss").args(["-tmnOH"]).output()).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let bytes = |field: &str| {
        let digits = ["r", "w", "bl"].iter().find_map(|kind| field.strip_prefix(kind))?;
        digits.parse::<u64>().ok()
    };
    text.split(&['(', ',', ')'][..]).filter_map(bytes).sum()
}
