//! The kernel programs, loaded and attached. The only module that says `aya`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf, SockHash};
use aya::programs::SkSkb;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use log::Log;
use rustix::fs::statfs;
use rustix::net::sockopt::socket_cookie;
use snisplit_common::abi::{
    ABI_MAP, ABI_VERSION, COPIED_SEQ_OFFSET, COUNTERS_MAP, DirectionEntry, EVENTS_MAP, FLOWS_MAP,
    ROUTES_MAP, SKB_SEQ_OFFSET, SOCKMAP_VERDICT_PROGRAM, SOURCES_MAP, SockmapCounter, SockmapEvent,
    SockmapEventKind, TARGETS_MAP, WRITE_SEQ_OFFSET,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::level_filters::LevelFilter;

use crate::sys;

pub(crate) mod address;
mod error;
mod layout;
mod offsets;
pub(crate) mod packet;
mod patient;
pub(crate) mod pinned;
mod routes;

pub(crate) use error::KernelError;
use layout::{FlowBytes, Plain as _, encode};
use offsets::Offsets;
use routes::Routes;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplit-ebpf"));

/// The maps that people look at.
pub(crate) const PINNED: [&str; 4] = [ABI_MAP, FLOWS_MAP, ROUTES_MAP, COUNTERS_MAP];

/// The verdict program on its socket map. Dropping it detaches it.
pub(crate) struct Verdict {
    maps: Mutex<Maps>,
    counters: PerCpuArray<MapData, u64>,
    routes: Mutex<Routes>,
    log: Mutex<EbpfLogger<&'static dyn Log>>,
    _loaded: Mutex<Ebpf>,
}

struct Maps {
    targets: SockHash<MapData, u64>,
    sources: SockHash<MapData, u64>,
    flows: HashMap<MapData, u64, FlowBytes>,
}

/// What the program tells, as it happens.
pub(crate) struct Events(AsyncFd<RingBuf<MapData>>);

/// Where maps can be pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Where the maps of an instance are pinned.
pub(crate) fn pins(instance: &str) -> PathBuf {
    Path::new(BPFFS).join("snisplit").join(instance)
}

/// Whether it is mounted.
pub(crate) fn has_bpffs() -> bool {
    /// linux/magic.h
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    statfs(BPFFS).is_ok_and(|mounted| mounted.f_type as u64 == BPF_FS_MAGIC)
}

/// The cookie of a socket, by which the program knows it.
pub(crate) fn cookie(socket: impl AsFd) -> Result<u64, KernelError> {
    Ok(socket_cookie(socket).map_err(io::Error::from)?)
}

impl Verdict {
    /// Loads and attaches. The level is a constant of the loaded program: at `OFF` the verifier
    /// removes the log statements, so they cost nothing. `pins` is a folder of a bpffs for the maps
    /// that people look at; nothing of those names may be in it.
    pub(crate) fn load(
        level: LevelFilter,
        pins: Option<&Path>,
    ) -> Result<(Self, Events), KernelError> {
        let level = ebpf_level(level);
        let Offsets { skb_seq, write_seq, copied_seq } = Offsets::of_this_kernel()?;
        let mut loader = EbpfLoader::new();
        for (name, folder) in PINNED.iter().zip(pins.into_iter().cycle()) {
            loader.map_pin_path(name, folder.join(name));
        }
        let mut ebpf = loader
            .override_global(aya_log::LEVEL, &level, true)
            .override_global(SKB_SEQ_OFFSET, &skb_seq, true)
            .override_global(WRITE_SEQ_OFFSET, &write_seq, true)
            .override_global(COPIED_SEQ_OFFSET, &copied_seq, true)
            .load(OBJECT)?;
        let log = EbpfLogger::init(&mut ebpf)?;
        let mut take = |name| ebpf.take_map(name).ok_or(KernelError::Missing(name));
        let mut abi: Array<MapData, u32> = take(ABI_MAP)?.try_into()?;
        abi.set(0, ABI_VERSION, 0)?;
        let sources: SockHash<MapData, u64> = take(SOURCES_MAP)?.try_into()?;
        let ring = RingBuf::try_from(take(EVENTS_MAP)?)?;
        let events = sys::watch(ring, Interest::READABLE)?;
        let counters = take(COUNTERS_MAP)?.try_into()?;
        let routes = Mutex::new(Routes::new(take(ROUTES_MAP)?.try_into()?));
        let maps = Maps {
            targets: take(TARGETS_MAP)?.try_into()?,
            flows: take(FLOWS_MAP)?.try_into()?,
            sources,
        };
        let program: &mut SkSkb = ebpf
            .program_mut(SOCKMAP_VERDICT_PROGRAM)
            .ok_or(KernelError::Missing(SOCKMAP_VERDICT_PROGRAM))?
            .try_into()?;
        patient::load(|| program.load())?;
        program.attach(maps.sources.fd())?;
        let (maps, log, _loaded) = (Mutex::new(maps), Mutex::new(log), Mutex::new(ebpf));
        Ok((Self { maps, counters, routes, log, _loaded }, Events(events)))
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a socket one that can be redirected to.
    pub(crate) fn add_target(&self, cookie: u64, socket: &impl AsRawFd) -> Result<(), KernelError> {
        Ok(self.maps().targets.insert(cookie, socket.as_raw_fd(), 0)?)
    }

    /// Shows the program everything that a socket receives from now on.
    pub(crate) fn add_source(&self, cookie: u64, socket: &impl AsRawFd) -> Result<(), KernelError> {
        Ok(self.maps().sources.insert(cookie, socket.as_raw_fd(), 0)?)
    }

    /// The program sees no more of what a socket receives; it can still be redirected to.
    pub(crate) fn remove_source(&self, cookie: u64) {
        let _gone_already = self.maps().sources.remove(&cookie);
    }

    /// Takes a socket out altogether. One that was closed has gone by itself.
    pub(crate) fn remove_socket(&self, cookie: u64) {
        self.remove_source(cookie);
        let _gone_already = self.maps().targets.remove(&cookie);
    }

    /// Notes a direction before its socket becomes a source.
    pub(crate) fn add_flow(&self, cookie: u64, flow: DirectionEntry) -> Result<(), KernelError> {
        Ok(self.maps().flows.insert(cookie, encode(&flow), 0)?)
    }

    /// What became of a direction so far.
    pub(crate) fn flow(&self, cookie: u64) -> Option<DirectionEntry> {
        self.maps().flows.get(&cookie, 0).ok().map(|bytes| DirectionEntry::get(&bytes))
    }

    pub(crate) fn remove_flow(&self, cookie: u64) {
        let _gone_already = self.maps().flows.remove(&cookie);
    }

    /// The number of a route of this name; 0 if there is no more room for it.
    pub(crate) fn route(&self, name: &str) -> u32 {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).number(name)
    }

    /// A counter, summed over all CPUs.
    pub(crate) fn count(&self, count: SockmapCounter) -> Result<u64, KernelError> {
        Ok(self.counters.get(&(count as u32), 0)?.iter().sum())
    }

    /// Events that the ring had no room for.
    pub(crate) fn events_lost(&self) -> u64 {
        self.count(SockmapCounter::EventLost).unwrap_or_default()
    }

    /// Passes on what the program has logged.
    pub(crate) fn flush_log(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}

impl Events {
    /// Waits for the next ones: whose, and what.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<(u64, SockmapEventKind)>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut events = Vec::new();
            while let Some(item) = ring.next() {
                let SockmapEvent { cookie, kind, .. } = SockmapEvent::get(&item);
                events.push((cookie, kind));
            }
            ready.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

fn ebpf_level(level: LevelFilter) -> u8 {
    use aya_log::Level;
    match level.into_level() {
        None => 0,
        Some(tracing::Level::ERROR) => Level::Error as u8,
        Some(tracing::Level::WARN) => Level::Warn as u8,
        Some(tracing::Level::INFO) => Level::Info as u8,
        Some(tracing::Level::DEBUG) => Level::Debug as u8,
        Some(tracing::Level::TRACE) => Level::Trace as u8,
    }
}
