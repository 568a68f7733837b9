//! What the kernel counts, as bpftool and ss read it.

use std::process::Command;

use aya::maps::{HashMap, Map, MapData};
use aya::util::KernelVersion;
use serde_json::Value;

use crate::lab::Lab;

/// Whether this kernel is of that version or newer.
pub fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(major, minor, 0)
}

/// bpftool's answer as JSON.
pub fn bpftool(words: &[&str]) -> Value {
    let mut command = Command::new("bpftool");
    let done = command.arg("-j").args(words).output().unwrap();
    assert!(done.status.success(), "bpftool {words:?}: {}", String::from_utf8_lossy(&done.stdout));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// A counter of an instance, by its place in `abi::Count`, over all CPUs.
pub fn sockmap_counter(instance: &str, slot: usize) -> u64 {
    sum_over_cpus(&format!("/sys/fs/bpf/snisplit/{instance}/counters"), slot)
}

fn sum_over_cpus(path: &str, slot: usize) -> u64 {
    let dump = bpftool(&["map", "dump", "pinned", path]);
    let values = dump[slot]["formatted"]["values"].as_array().unwrap();
    values.iter().map(|one| one["value"].as_u64().unwrap()).sum()
}

/// Fills a pinned `packet_tuples` with tuples of nobody's; the answer takes them out again.
pub fn fill_tuple_map(path: &str) -> impl FnOnce() + use<> {
    let data = MapData::from_pin(path).unwrap();
    let mut map = HashMap::<_, [u8; 36], [u8; 16]>::try_from(Map::HashMap(data)).unwrap();
    let key = |number: u64| {
        let mut key = [0xff; 36];
        key[..8].copy_from_slice(&(u64::MAX - number).to_ne_bytes());
        key
    };
    let filled = (0..).find(|number| map.insert(key(*number), [0; 16], 0).is_err()).unwrap();
    assert!(filled > 1_000, "{path} takes no more than {filled}");
    move || (0..filled).for_each(|number| map.remove(&key(number)).unwrap())
}

/// A counter of the network namespace that the thread is in, of a file in /proc/net and a group there.
pub fn proc_net_counter(file: &str, group: &str, what: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut both = names.split(' ').zip(values.split(' '));
    both.find(|(name, _)| *name == what).unwrap().1.parse().unwrap()
}

/// How often a packet fared so, by its place in `abi::packet::Fate`, over all CPUs.
pub fn packet_counter(instance: &str, slot: usize) -> u64 {
    sum_over_cpus(&format!("/sys/fs/bpf/snisplit/{instance}/packet_counters"), slot)
}

/// The directions of an instance's flows (`abi::Flow`).
pub fn sockmap_flow_entries(instance: &str) -> Vec<Value> {
    let path = format!("/sys/fs/bpf/snisplit/{instance}/flows");
    let dump = bpftool(&["map", "dump", "pinned", &path]);
    dump.as_array().unwrap().iter().map(|entry| entry["formatted"]["value"].clone()).collect()
}

/// Entries of the maps of a process that flows come and go in: `flows`, `targets` and `sources`.
pub fn sockmap_entry_count(pid: u32) -> usize {
    let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let id_of_map = |info: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(info.ok()?.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("map_id:")).map(|id| id.trim().to_owned())
    };
    let maps: std::collections::BTreeSet<String> = infos.filter_map(id_of_map).collect();
    let is_flow_map = |id: &&String| {
        let map = bpftool(&["map", "show", "id", id]);
        ["flows", "targets", "sources"].contains(&map["name"].as_str().unwrap_or_default())
    };
    let maps: Vec<&String> = maps.iter().filter(is_flow_map).collect();
    assert_eq!(maps.len(), 3, "{maps:?}");
    maps.iter().map(|id| bpftool(&["map", "dump", "id", id]).as_array().unwrap().len()).sum()
}

/// The id of a program of this name that a process has.
pub fn program_id(pid: u32, name: &str) -> String {
    let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let id = |info: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(info.ok()?.path()).ok()?;
        text.lines().find_map(|line| line.strip_prefix("prog_id:")).map(|id| id.trim().to_owned())
    };
    let is_it = |id: &String| bpftool(&["prog", "show", "id", id])["name"] == name;
    infos.filter_map(id).find(is_it).expect("the program of that name")
}

/// Bytes that the buffers of the proxy's sockets take, packets' overhead included (`skmem` of ss:
/// what was received, what waits to be sent, and the socket's own backlog).
pub fn socket_memory(lab: &Lab) -> u64 {
    let done = lab.in_proxy(|| Command::new("ss").args(["-tmnOH"]).output()).unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    let fields = text.split(&['(', ',', ')'][..]);
    let of = |field: &str| {
        let digits = ["r", "w", "bl"].iter().find_map(|kind| field.strip_prefix(kind))?;
        digits.parse::<u64>().ok()
    };
    fields.filter_map(of).sum()
}
