//! Threads of the agent that flows are on, by the epoll instances that procfs shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::agent::Agent;

/// Whether the agent's only flow is on the thread that accepted it: one epoll instance watches its two sockets and a
/// listener. `None` while several epoll instances watch the two sockets.
pub fn is_on_acceptor_thread(agent: &Agent) -> Option<bool> {
    let sockets = socket_inodes(agent, ESTABLISHED);
    assert_eq!(sockets.len(), 2, "the agent has not one flow: {sockets:?}");
    let [watched]: [BTreeSet<u64>; 1] =
        Vec::from_iter(epoll_sets_with(agent, &sockets)).try_into().ok()?;
    watched.is_superset(&sockets).then(|| !watched.is_disjoint(&socket_inodes(agent, LISTEN)))
}

/// Inodes that each epoll instance watches which watches one of these sockets (proc_pid_fdinfo(5)). A set, because an
/// instance may have several descriptors.
fn epoll_sets_with(agent: &Agent, sockets: &BTreeSet<u64>) -> BTreeSet<BTreeSet<u64>> {
    let process = format!("/proc/{}/fdinfo", agent.pid());
    let descriptors = fs::read_dir(process).unwrap().map(|one| one.unwrap().path());
    let watched = |descriptor: PathBuf| {
        let text = fs::read_to_string(descriptor).unwrap_or_default();
        let inodes = text.split("ino:").skip(1).filter_map(|rest| rest.split_whitespace().next());
        inodes.flat_map(|hex| u64::from_str_radix(hex, 16)).collect::<BTreeSet<u64>>()
    };
    descriptors.map(watched).filter(|watched| !watched.is_disjoint(sockets)).collect()
}

/// Inodes of TCP sockets in this state. Leaves out loopback, which the admin port listens on.
fn socket_inodes(agent: &Agent, state: &str) -> BTreeSet<u64> {
    let table = |name| fs::read_to_string(format!("/proc/{}/net/{name}", agent.pid())).unwrap();
    let lines = table("tcp") + &table("tcp6");
    let fields = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_state =
        fields.filter(|all| all.get(3) == Some(&state) && !all[1].starts_with("0100007F:"));
    of_state.filter_map(|fields| fields[9].parse().ok()).collect()
}

// States in /proc/net/tcp (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";
