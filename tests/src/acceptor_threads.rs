//! Which of the agent's threads a flow is with, by what procfs shows of epoll.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::agent::Agent;

/// Whether the agent's one flow is watched by the thread that accepted it. `None` while its two sockets are not
/// watched by just one.
pub fn is_on_acceptor_thread(agent: &Agent) -> Option<bool> {
    let both = socket_inodes(agent, ESTABLISHED);
    assert_eq!(both.len(), 2, "the sockets of one flow: {both:?}");
    let [watched]: [BTreeSet<u64>; 1] =
        Vec::from_iter(epoll_sets_with(agent, &both)).try_into().ok()?;
    watched.is_superset(&both).then(|| !watched.is_disjoint(&socket_inodes(agent, LISTEN)))
}

/// What each epoll instance watches that watches any of these sockets, by inodes (proc_pid_fdinfo(5)). An
/// instance may have several descriptors.
fn epoll_sets_with(agent: &Agent, sockets: &BTreeSet<u64>) -> BTreeSet<BTreeSet<u64>> {
    let process = format!("/proc/{}/fdinfo", agent.pid());
    let descriptors = fs::read_dir(process).unwrap().map(|one| one.unwrap().path());
    let watched = |descriptor: PathBuf| {
        let about = fs::read_to_string(descriptor).unwrap_or_default();
        let inodes = about.split("ino:").skip(1).filter_map(|rest| rest.split_whitespace().next());
        inodes.flat_map(|hex| u64::from_str_radix(hex, 16)).collect::<BTreeSet<u64>>()
    };
    descriptors.map(watched).filter(|watched| !watched.is_disjoint(sockets)).collect()
}

/// Inodes of the TCP sockets in this state that are not of loopback, as the admin port is.
fn socket_inodes(agent: &Agent, state: &str) -> BTreeSet<u64> {
    let table = |name| fs::read_to_string(format!("/proc/{}/net/{name}", agent.pid())).unwrap();
    let lines = table("tcp") + &table("tcp6");
    let fields = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_state =
        fields.filter(|all| all.get(3) == Some(&state) && !all[1].starts_with("0100007F:"));
    of_state.filter_map(|fields| fields[9].parse().ok()).collect()
}

/// include/net/tcp_states.h
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";
