//! The program and the maps of the sockmap engine.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf, SockHash};
use aya::programs::SkSkb;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use log::Log;
use snisplit_common::abi::SOCKMAP_ABI_VERSION;
use snisplit_common::abi::sockmap::{
    ABI_MAP, COPIED_SEQ_OFFSET, COUNTERS_MAP, DirectionEntry, EVENTS_MAP, FLOWS_MAP, ROUTES_MAP,
    SKB_SEQ_OFFSET, SOCKMAP_VERDICT_PROGRAM, SOURCES_MAP, SockmapCounter, SockmapEvent,
    SockmapEventKind, TARGETS_MAP, WRITE_SEQ_OFFSET,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::level_filters::LevelFilter;

use super::btf_offsets::SockmapOffsets;
use super::codec::{FlowBytes, decode, encode};
use super::error::BpfError;
use super::load_retry;
use super::route_names::RouteNames;
use crate::sys;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplit-sockmap"));

/// Maps that are pinned for `bpftool` and `snisplit status`.
const PINNED_MAPS: [&str; 4] = [ABI_MAP, FLOWS_MAP, ROUTES_MAP, COUNTERS_MAP];

/// The verdict program, attached to the map of source sockets. Dropping it detaches the program.
pub(crate) struct SockmapProgram {
    maps: Mutex<Maps>,
    counters: PerCpuArray<MapData, u64>,
    route_names: Mutex<RouteNames>,
    log: Mutex<EbpfLogger<&'static dyn Log>>,
    _loaded: Mutex<Ebpf>,
}

struct Maps {
    targets: SockHash<MapData, u64>,
    sources: SockHash<MapData, u64>,
    flows: HashMap<MapData, u64, FlowBytes>,
}

/// Events of the verdict program.
pub(crate) struct SockmapEvents(AsyncFd<RingBuf<MapData>>);

impl SockmapProgram {
    /// Loads and attaches the program. The log level is a constant of the loaded program: at `OFF` the
    /// verifier removes the log statements. `pins` is a folder of a bpffs for the maps to pin; no pin
    /// with one of their names may be in it.
    ///
    /// # Errors
    /// Fails if the kernel rejects the object, or if its BTF lacks an offset.
    pub(crate) fn load(
        level: LevelFilter,
        pins: Option<&Path>,
    ) -> Result<(Self, SockmapEvents), BpfError> {
        let level = ebpf_log_level(level);
        let SockmapOffsets { skb_seq, write_seq, copied_seq } =
            SockmapOffsets::from_running_kernel()?;
        let mut loader = EbpfLoader::new();
        for (name, folder) in PINNED_MAPS.iter().zip(pins.into_iter().cycle()) {
            loader.map_pin_path(name, folder.join(name));
        }
        let mut ebpf = loader
            .override_global(aya_log::LEVEL, &level, true)
            .override_global(SKB_SEQ_OFFSET, &skb_seq, true)
            .override_global(WRITE_SEQ_OFFSET, &write_seq, true)
            .override_global(COPIED_SEQ_OFFSET, &copied_seq, true)
            .load(OBJECT)?;
        let log = EbpfLogger::init(&mut ebpf)?;
        let mut take_map = |name| ebpf.take_map(name).ok_or(BpfError::MissingFromObject(name));
        let mut abi: Array<MapData, u32> = take_map(ABI_MAP)?.try_into()?;
        abi.set(0, SOCKMAP_ABI_VERSION, 0)?;
        let sources: SockHash<MapData, u64> = take_map(SOURCES_MAP)?.try_into()?;
        let ring = RingBuf::try_from(take_map(EVENTS_MAP)?)?;
        let events = sys::async_fd(ring, Interest::READABLE)?;
        let counters = take_map(COUNTERS_MAP)?.try_into()?;
        let route_names = Mutex::new(RouteNames::new(take_map(ROUTES_MAP)?.try_into()?));
        let maps = Maps {
            targets: take_map(TARGETS_MAP)?.try_into()?,
            flows: take_map(FLOWS_MAP)?.try_into()?,
            sources,
        };
        let program: &mut SkSkb = ebpf
            .program_mut(SOCKMAP_VERDICT_PROGRAM)
            .ok_or(BpfError::MissingFromObject(SOCKMAP_VERDICT_PROGRAM))?
            .try_into()?;
        load_retry::load_program(|| program.load())?;
        program.attach(maps.sources.fd())?;
        let (maps, log, _loaded) = (Mutex::new(maps), Mutex::new(log), Mutex::new(ebpf));
        Ok((Self { maps, counters, route_names, log, _loaded }, SockmapEvents(events)))
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a socket that data may be redirected to.
    ///
    /// # Errors
    /// Fails if the map is full or the kernel does not accept the socket.
    pub(crate) fn add_target(&self, cookie: u64, socket: &impl AsRawFd) -> Result<(), BpfError> {
        Ok(self.maps().targets.insert(cookie, socket.as_raw_fd(), 0)?)
    }

    /// Adds a socket whose received data goes to the program from then on.
    ///
    /// # Errors
    /// Fails if the map is full or the kernel does not accept the socket.
    pub(crate) fn add_source(&self, cookie: u64, socket: &impl AsRawFd) -> Result<(), BpfError> {
        Ok(self.maps().sources.insert(cookie, socket.as_raw_fd(), 0)?)
    }

    /// Removes a socket from the sources. It remains a target.
    pub(crate) fn remove_source(&self, cookie: u64) {
        let _already_removed = self.maps().sources.remove(&cookie);
    }

    /// Removes a socket from sources and targets. The kernel removes closed sockets by itself.
    pub(crate) fn remove_socket(&self, cookie: u64) {
        self.remove_source(cookie);
        let _already_removed = self.maps().targets.remove(&cookie);
    }

    /// Inserts the entry of a direction. Call this before the socket becomes a source.
    ///
    /// # Errors
    /// Fails if the map is full.
    pub(crate) fn insert_flow_entry(
        &self,
        cookie: u64,
        flow: DirectionEntry,
    ) -> Result<(), BpfError> {
        Ok(self.maps().flows.insert(cookie, encode(&flow), 0)?)
    }

    /// Returns the present entry of a direction.
    pub(crate) fn flow_entry(&self, cookie: u64) -> Option<DirectionEntry> {
        self.maps().flows.get(&cookie, 0).ok().and_then(|bytes| decode(&bytes))
    }

    /// Removes the entry of a direction.
    pub(crate) fn remove_flow_entry(&self, cookie: u64) {
        let _already_removed = self.maps().flows.remove(&cookie);
    }

    /// Returns the ID of a route's name, a new one if need be. 0: the map is full.
    pub(crate) fn route_id(&self, name: &str) -> u32 {
        self.route_names.lock().unwrap_or_else(PoisonError::into_inner).intern(name)
    }

    /// Returns a counter, summed over all CPUs.
    ///
    /// # Errors
    /// Fails if the kernel does not let the map be read.
    pub(crate) fn counter(&self, counter: SockmapCounter) -> Result<u64, BpfError> {
        Ok(self.counters.get(&(counter as u32), 0)?.iter().sum())
    }

    /// Returns the number of events that the ring buffer had no room for.
    pub(crate) fn lost_events(&self) -> u64 {
        self.counter(SockmapCounter::EventLost).unwrap_or_default()
    }

    /// Writes what the program has logged to the agent's log.
    pub(crate) fn flush_log(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).flush();
    }
}

impl SockmapEvents {
    /// Waits for events. Returns the cookie of the receiving socket and the kind of each.
    ///
    /// # Errors
    /// Fails if the ring buffer cannot be polled.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<(u64, SockmapEventKind)>> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut events = Vec::new();
            while let Some(item) = ring.next() {
                let event: Option<SockmapEvent> = decode(&item);
                events.extend(event.map(|SockmapEvent { cookie, kind, .. }| (cookie, kind)));
            }
            ready.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

fn ebpf_log_level(level: LevelFilter) -> u8 {
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
