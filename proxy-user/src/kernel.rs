//! The kernel programs, loaded and attached. The only module that says `aya`.

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use aya::maps::{MapData, MapError, PerCpuArray, SockHash};
use aya::programs::{ProgramError, SkSkb};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use log::Log;
use rustix::net::sockopt::socket_cookie;
use snisplit_common::abi::{COUNTERS_MAP, Count, SOURCES_MAP, VERDICT_PROGRAM};
use thiserror::Error;
use tracing::level_filters::LevelFilter;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplit-ebpf"));

/// Why the kernel does not do what it should.
#[derive(Debug, Error)]
pub(crate) enum KernelError {
    #[error("the object does not load (CAP_BPF and CAP_NET_ADMIN are needed)")]
    Load(#[from] EbpfError),
    #[error("the object lacks `{0}`")]
    Missing(&'static str),
    #[error("the verifier or the kernel refuses the program")]
    Program(#[from] ProgramError),
    #[error("a map does not work")]
    Map(#[from] MapError),
    #[error("the program's log does not open")]
    Log(#[from] aya_log::Error),
    #[error("a socket has no cookie")]
    Socket(#[from] std::io::Error),
}

/// The verdict program on its socket map. Dropping it detaches it.
pub(crate) struct VerdictProgram {
    sources: SockHash<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
    log: EbpfLogger<&'static dyn Log>,
    _loaded: Ebpf,
}

impl VerdictProgram {
    /// Loads and attaches. The level is a constant of the loaded program: at `OFF` the verifier
    /// removes the log statements, so they cost nothing.
    pub(crate) fn load(level: LevelFilter) -> Result<Self, KernelError> {
        let level = ebpf_level(level);
        let mut ebpf =
            EbpfLoader::new().override_global(aya_log::LEVEL, &level, true).load(OBJECT)?;
        let log = EbpfLogger::init(&mut ebpf)?;
        let mut take = |name| ebpf.take_map(name).ok_or(KernelError::Missing(name));
        let sources: SockHash<MapData, u64> = take(SOURCES_MAP)?.try_into()?;
        let counters = take(COUNTERS_MAP)?.try_into()?;
        let program: &mut SkSkb = ebpf
            .program_mut(VERDICT_PROGRAM)
            .ok_or(KernelError::Missing(VERDICT_PROGRAM))?
            .try_into()?;
        program.load()?;
        program.attach(sources.fd())?;
        Ok(Self { sources, counters, log, _loaded: ebpf })
    }

    /// Shows the program everything that the socket receives from now on.
    pub(crate) fn watch(&mut self, socket: &TcpStream) -> Result<(), KernelError> {
        let cookie = socket_cookie(socket).map_err(std::io::Error::from)?;
        Ok(self.sources.insert(cookie, socket.as_raw_fd(), 0)?)
    }

    /// A counter, summed over all CPUs.
    pub(crate) fn count(&self, count: Count) -> Result<u64, KernelError> {
        Ok(self.counters.get(&(count as u32), 0)?.iter().sum())
    }

    /// Passes on what the program has logged.
    pub(crate) fn flush_log(&mut self) {
        self.log.flush();
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
