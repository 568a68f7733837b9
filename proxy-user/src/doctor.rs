//! What this host can do, each answer found by doing it, and for each "no" the reason.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::{Resource, getrlimit};
use snisplit_common::limits::max_connections_for_nofile;
use tokio::runtime::Runtime;
use tracing::level_filters::LevelFilter;

use crate::config::Packet;
use crate::engine::self_test;
use crate::kernel;
use crate::kernel::packet::{Link, Splicer};
use crate::net::host::{self, Interface};

/// How an answer bears on running the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Ok,
    /// Works, with less.
    Warn,
    No,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::No => "NO",
        })
    }
}

/// Asks everything and prints a line for each; fails if one is a NO.
pub fn run(ebpf_log: LevelFilter) -> Result<ExitCode> {
    let answers = [
        ("kernel", kernel()),
        ("open files", open_files()),
        ("IPv6", ipv6()),
        ("engine copy", (Mark::Ok, "needs nothing".into())),
        ("engine splice", tried(splice_works(), "bytes went socket to pipe to socket")),
        (
            "BTF",
            file("/sys/kernel/btf/vmlinux", "the kernel is built without CONFIG_DEBUG_INFO_BTF"),
        ),
        ("bpffs", bpffs()),
        ("engine sockmap", sockmap(ebpf_log)),
        ("engine packet", packet()),
    ];
    let mut all_well = true;
    for (what, (mark, words)) in answers {
        println!("{mark:<4}  {what:<15}  {words}");
        all_well &= mark != Mark::No;
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tried(result: Result<()>, done: &str) -> (Mark, String) {
    match result {
        Ok(()) => (Mark::Ok, done.into()),
        Err(error) => (Mark::No, format!("{error:#}")),
    }
}

fn file(path: &str, why_not: &str) -> (Mark, String) {
    match Path::new(path).exists() {
        true => (Mark::Ok, path.into()),
        false => (Mark::Warn, format!("no {path}: {why_not}")),
    }
}

fn kernel() -> (Mark, String) {
    let uname = rustix::system::uname();
    let words = [uname.sysname(), uname.release(), uname.machine()]
        .map(|word| word.to_string_lossy().into_owned())
        .join(" ");
    (Mark::Ok, words)
}

fn open_files() -> (Mark, String) {
    let Some(limit) = getrlimit(Resource::Nofile).maximum else {
        return (Mark::Ok, "unlimited".into());
    };
    let connections = max_connections_for_nofile(limit);
    let mark = if connections < 10_000 { Mark::Warn } else { Mark::Ok };
    let words = format!("hard limit {limit}: {connections} busy connections; root may raise it");
    (mark, words)
}

fn ipv6() -> (Mark, String) {
    match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => (Mark::Ok, "[::1] binds".into()),
        Err(error) => (Mark::Warn, format!("[::1] does not bind: {error}; listen on IPv4 only")),
    }
}

fn bpffs() -> (Mark, String) {
    match kernel::has_bpffs() {
        true => (Mark::Ok, kernel::BPFFS.into()),
        false => {
            let words = "not mounted on /sys/fs/bpf, so nothing can be pinned; \
                         `mount -t bpf bpf /sys/fs/bpf` mounts it";
            (Mark::Warn, words.into())
        }
    }
}

fn splice_works() -> Result<()> {
    let (mut peer, socket) = connected_pair()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("pipe2(2)")?;
    peer.write_all(b"ping")?;
    let flags = SpliceFlags::MOVE;
    let moved = splice(&socket, None, &write, None, 4, flags).context("splice(2) from a socket")?;
    let moved =
        splice(&read, None, &socket, None, moved, flags).context("splice(2) to a socket")?;
    let mut back = [0; 4];
    peer.read_exact(&mut back[..moved])?;
    ensure!(&back == b"ping", "the bytes changed on their way");
    Ok(())
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Flows over loopback, through all that some kernel does wrongly (`engine::probe`).
fn sockmap(level: LevelFilter) -> (Mark, String) {
    let tried = runtime().and_then(|runtime| runtime.block_on(self_test::load_and_test(level, None)));
    let done = "flows over loopback: trimmed, bounded behind a slow reader, half-closed, counted";
    match (tried, self_test::known_kernel_bug()) {
        (Ok(_), None) => (Mark::Ok, done.into()),
        (Ok(_), Some(fault)) => {
            (Mark::Warn, format!("{done}; but {fault}, so `auto` leaves it alone"))
        }
        (Err(error), _) => (Mark::No, format!("{error:#}")),
    }
}

/// The programs on an interface where they have nothing to do, and what else the engine needs.
fn packet() -> (Mark, String) {
    let defaults = Packet::default();
    let tried = runtime()
        .and_then(|runtime| {
            let _entered = runtime.enter();
            let loopback = Link { name: "lo".into(), number: 1, has_peer: false, in_driver: false };
            let place = (&[loopback][..], defaults.hook);
            let loaded = Splicer::load(place, None).map(drop);
            loaded.context("the programs do not go to an interface")
        })
        .and_then(|()| host::ensure_nobody_has(&defaults.ports))
        .and_then(|()| host::links(&defaults));
    match (tried, host::tables_gone_past()) {
        (Err(error), _) => (Mark::Warn, format!("{error:#}")),
        (Ok(links), None | Some(0)) => {
            let can = |link: &&Interface| host::why_not_in_driver(link).is_none();
            let (all, xdp) = (links.len(), links.iter().filter(can).count());
            (Mark::Ok, format!("attaches; {all} interface(s) for it, {xdp} with drivers for XDP"))
        }
        (Ok(_), Some(tables)) => (
            Mark::Warn,
            format!(
                "attaches; but packets of its flows go past the rules of netfilter ({tables} \
                 table(s) here), whatever these say"
            ),
        ),
    }
}

/// A TCP connection over loopback, with deadlines.
fn connected_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .context("loopback does not work (is `lo` up?)")?;
    let here = TcpStream::connect(listener.local_addr()?).context("connect over loopback")?;
    let (there, _) = listener.accept()?;
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.set_nodelay(true)?;
    }
    Ok((here, there))
}
