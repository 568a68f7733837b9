//! `snisplit doctor`: tests what this host supports, and gives the reason for each failure.
//!
//! Each check performs the operation that it tests.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use snisplit_common::limits::max_connections_for_nofile;
use tokio::runtime::Runtime;
use tracing::level_filters::LevelFilter;

use super::counted;
use crate::bpf;
use crate::bpf::packet::{AttachPlan, AttachTarget, Hook, PacketPrograms};
use crate::config::PacketConfig;
use crate::engine::self_test;
use crate::net::host::{self, Interface};

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckStatus {
    Ok,
    /// The agent runs, without the feature that the check is about.
    Warn,
    Fail,
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "NO",
        })
    }
}

/// The checks of a host and their results.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct HostReport(Vec<HostCheck>);

/// A check and its result.
#[derive(Debug, Serialize)]
struct HostCheck {
    check: &'static str,
    status: CheckStatus,
    /// What works, or the reason why not.
    detail: String,
}

impl HostReport {
    /// Runs all checks.
    pub fn run(ebpf_log_level: LevelFilter) -> Self {
        let checks = [
            ("kernel", check_kernel()),
            ("open files", check_open_files()),
            ("IPv6", check_ipv6()),
            ("engine copy", (CheckStatus::Ok, "needs nothing".into())),
            ("engine splice", from_result(check_splice(), "bytes went socket to pipe to socket")),
            (
                "BTF",
                check_file(
                    "/sys/kernel/btf/vmlinux",
                    "the kernel is built without CONFIG_DEBUG_INFO_BTF",
                ),
            ),
            ("bpffs", check_bpffs()),
            ("engine sockmap", check_sockmap(ebpf_log_level)),
            ("engine packet", check_packet()),
        ];
        let check = |(check, (status, detail))| HostCheck { check, status, detail };
        Self(checks.map(check).into())
    }

    /// Whether no check failed.
    pub fn has_passed(&self) -> bool {
        self.0.iter().all(|check| check.status != CheckStatus::Fail)
    }
}

impl fmt::Display for HostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for HostCheck { check, status, detail } in &self.0 {
            writeln!(f, "{status:<4}  {check:<15}  {detail}")?;
        }
        Ok(())
    }
}

fn from_result(result: Result<()>, success: &str) -> (CheckStatus, String) {
    match result {
        Ok(()) => (CheckStatus::Ok, success.into()),
        Err(error) => (CheckStatus::Fail, format!("{error:#}")),
    }
}

fn check_file(path: &str, reason: &str) -> (CheckStatus, String) {
    match Path::new(path).exists() {
        true => (CheckStatus::Ok, path.into()),
        false => (CheckStatus::Warn, format!("no {path}: {reason}")),
    }
}

fn check_kernel() -> (CheckStatus, String) {
    let uname = rustix::system::uname();
    let detail = [uname.sysname(), uname.release(), uname.machine()]
        .map(|field| field.to_string_lossy().into_owned())
        .join(" ");
    (CheckStatus::Ok, detail)
}

fn check_open_files() -> (CheckStatus, String) {
    let Some(limit) = getrlimit(Resource::Nofile).maximum else {
        return (CheckStatus::Ok, "unlimited".into());
    };
    let connections = max_connections_for_nofile(limit);
    let status = if connections < 10_000 { CheckStatus::Warn } else { CheckStatus::Ok };
    let detail = format!("hard limit {limit}: {connections} busy connections; root may raise it");
    (status, detail)
}

fn check_ipv6() -> (CheckStatus, String) {
    match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => (CheckStatus::Ok, "[::1] binds".into()),
        Err(error) => {
            (CheckStatus::Warn, format!("[::1] does not bind: {error}; listen on IPv4 only"))
        }
    }
}

fn check_bpffs() -> (CheckStatus, String) {
    match bpf::is_bpffs_mounted() {
        true => (CheckStatus::Ok, bpf::BPFFS.into()),
        false => {
            let detail = "not mounted on /sys/fs/bpf, so nothing can be pinned; \
                          `mount -t bpf bpf /sys/fs/bpf` mounts it";
            (CheckStatus::Warn, detail.into())
        }
    }
}

fn check_splice() -> Result<()> {
    let (mut peer, socket) = connected_pair()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("pipe2(2)")?;
    peer.write_all(b"ping")?;
    let flags = SpliceFlags::MOVE;
    let moved = splice(&socket, None, &write, None, 4, flags).context("splice(2) from a socket")?;
    let moved =
        splice(&read, None, &socket, None, moved, flags).context("splice(2) to a socket")?;
    let mut received = [0; 4];
    peer.read_exact(&mut received[..moved])?;
    ensure!(&received == b"ping", "splice(2) changed the bytes");
    Ok(())
}

fn current_thread_runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Loads the sockmap engine and runs its self-test, which finds the known bugs of kernels.
fn check_sockmap(level: LevelFilter) -> (CheckStatus, String) {
    let result = current_thread_runtime()
        .and_then(|runtime| runtime.block_on(self_test::load_and_test(level, None)));
    let success =
        "flows over loopback: trimmed, bounded behind a slow reader, half-closed, counted";
    match (result, self_test::known_kernel_bug()) {
        (Ok(_), None) => (CheckStatus::Ok, success.into()),
        (Ok(_), Some(bug)) => {
            (CheckStatus::Warn, format!("{success}; but {bug}, so `auto` does not use it"))
        }
        (Err(error), _) => (CheckStatus::Fail, format!("{error:#}")),
    }
}

/// Attaches the packet programs to the loopback interface, which no flow uses, and checks the other
/// requirements of the engine.
fn check_packet() -> (CheckStatus, String) {
    let defaults = PacketConfig::default();
    let result = current_thread_runtime()
        .and_then(|runtime| {
            let _runtime_guard = runtime.enter();
            let loopback = AttachTarget {
                name: "lo".into(),
                ifindex: 1,
                peer_in_other_netns: false,
                use_xdp: false,
            };
            let plan = AttachPlan::new(vec![loopback], None, Hook::is_tcx_supported())?;
            let loaded = PacketPrograms::load(&plan, None).map(drop);
            loaded.context("the programs cannot be attached to an interface")
        })
        .and_then(|()| host::ensure_ports_reserved(&defaults.ports))
        .and_then(|()| host::select_interfaces(&defaults));
    match (result, host::bypassed_nf_tables()) {
        (Err(error), _) => (CheckStatus::Warn, format!("{error:#}")),
        (Ok(interfaces), None | Some(0)) => {
            let supports_xdp =
                |interface: &&Interface| host::xdp_unsupported_reason(interface).is_none();
            let (all, xdp) = (interfaces.len(), interfaces.iter().filter(supports_xdp).count());
            (
                CheckStatus::Ok,
                format!("attaches; {}, {xdp} with drivers for XDP", counted(all, "interface")),
            )
        }
        (Ok(_), Some(tables)) => (
            CheckStatus::Warn,
            format!(
                "attaches; but packets of its flows bypass all rules of netfilter ({} \
                 here)",
                counted(tables, "table")
            ),
        ),
    }
}

/// Opens a TCP connection over loopback, with a timeout of 2 s for reads.
fn connected_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .context("loopback does not work (is `lo` up?)")?;
    let client = TcpStream::connect(listener.local_addr()?).context("connect over loopback")?;
    let (server, _) = listener.accept()?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.set_nodelay(true)?;
    }
    Ok((client, server))
}
