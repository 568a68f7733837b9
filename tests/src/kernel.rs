//! What the kernel program counts, as bpftool reads it.

use std::process::Command;

use serde_json::Value;

/// bpftool's answer as JSON.
pub fn bpftool(words: &[&str]) -> Value {
    let mut command = Command::new("bpftool");
    let done = command.arg("-j").args(words).output().unwrap();
    assert!(done.status.success(), "bpftool {words:?}: {}", String::from_utf8_lossy(&done.stdout));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// A counter of an instance, by its place in `abi::Count`, over all CPUs.
pub fn counter(instance: &str, slot: usize) -> u64 {
    let path = format!("/sys/fs/bpf/snisplit/{instance}/counters");
    let dump = bpftool(&["map", "dump", "pinned", &path]);
    let values = dump[slot]["formatted"]["values"].as_array().unwrap();
    values.iter().map(|one| one["value"].as_u64().unwrap()).sum()
}
