//! Namespaces for mounts, network and processes. What a run leaves behind ends with them.

use std::path::Path;
use std::process::Command;

use crate::run::as_root;

/// Prepares the namespaces, then runs a command. `/run/netns` and `/run/snisplit` are new, so that no
/// name collides with one of the host.
const ENTER_NAMESPACE: &str = "mkdir -p /run/netns /run/snisplit && mount -t tmpfs sp-netns /run/netns && \
    mount -t tmpfs sp-run /run/snisplit && mount -t bpf bpf /sys/fs/bpf && ip link set lo up && \
    exec \"$@\"";

const UNSHARE: [&str; 10] = [
    "unshare",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    ENTER_NAMESPACE,
];

/// The programs that the root suite runs beside its own.
pub(crate) struct Tools<'a> {
    pub(crate) agent: &'a Path,
    /// Folder of the peers that PyPI packages.
    pub(crate) peers: &'a Path,
}

/// Starts a command that runs as root in new namespaces. The caller appends the program and its
/// arguments. `variables` are `NAME=VALUE`.
pub(super) fn command(tools: &Tools, variables: &[String]) -> Command {
    let mut command = as_root("env");
    command.arg(format!("SNISPLIT_BIN={}", tools.agent.display()));
    command.arg(format!("SNISPLIT_PEERS={}", tools.peers.display()));
    command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    // The last word is the shell's `$0`.
    command.args(variables).args(UNSHARE).arg("snisplit");
    command
}
