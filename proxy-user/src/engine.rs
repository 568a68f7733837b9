//! Engines carry the bytes of a forwarded connection, and the ladder picks one.
//!
//! The contract is ownership: [`Engine::carry`] takes a pair of sockets to their end, or hands them
//! back as they were. After the first byte there is no handing back. `copy` is the reference; every
//! other engine gives the same bytes, half-closes, resets and tally. `packet` does not carry a pair but
//! takes its place: what is left then is to wait ([`CarryResult::Offloaded`]).

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use rustix::io::Errno;
use snisplit_common::abi::packet::FallbackReason;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use tracing::debug;

use crate::sys;

mod byte_counts;
mod classifier;
pub(crate) mod copy;
pub(crate) mod packet;
mod selector;
pub(crate) mod self_test;
mod socket;
pub(crate) mod sockmap;
pub(crate) mod splice;
mod transfer;

pub(crate) use selector::{CarryResult, EngineChoice, EngineObserver, EngineSelector, FlowRequest};
pub(crate) use socket::{Socket, TcpTimeouts, rebind_to_runtime};
pub(crate) use transfer::Handover;

/// How long bytes on their way to the surviving peer may take before the reset follows them.
const RESET_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes a pair of sockets to their end, or hands them back as they were.
pub(crate) trait Engine {
    /// What handing back looks like; [`Infallible`](std::convert::Infallible) for the last rung.
    type Declined;

    /// Carries both directions until both have ended.
    async fn carry(&self, pair: SocketPair) -> Result<FlowEnd, Self::Declined>;
}

/// The engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// read(2) and write(2) through a pooled buffer.
    Copy,
    /// splice(2) through a pooled pipe; what is small is copied.
    Splice,
    /// A verdict program on a socket map.
    Sockmap,
    /// Packets are translated; there are no sockets.
    Packet,
}

impl EngineKind {
    /// The word in configs, counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Packet => "packet",
        }
    }
}

/// Two connected sockets that want to be one connection.
///
/// TCP sockets carry `SO_LINGER` 0 (the client's from its listener) until a clean end takes it off:
/// however the agent leaves a running flow (an error, a panic, `kill -9`), the peers see a reset and
/// never a false end of stream.
#[derive(Debug)]
pub(crate) struct SocketPair {
    client: Socket,
    backend: Socket,
    counters: Arc<FlowCounters>,
    /// Its route's number among the pins.
    route_id: u32,
    /// Whether a direction that turns bulk is to leave the kernel.
    detach_bulk: bool,
}

/// The account of a flow while it runs, for whoever watches it, and when it has ended.
#[derive(Debug, Default)]
pub(crate) struct FlowCounters {
    /// Bytes from the client that the back end's socket took, the hello included.
    bytes_up: AtomicU64,
    /// Bytes from the back end that the client's socket took.
    bytes_down: AtomicU64,
    engine: Mutex<Option<EngineKind>>,
    /// Counts what moves where user space does not see it.
    kernel_counters: Mutex<Option<KernelCounters>>,
}

struct KernelCounters(Box<dyn Fn() -> (u64, u64) + Send>);

impl fmt::Debug for KernelCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

/// A meter that is read; dropping it adds what it says to the tally.
struct CounterGuard<'t>(&'t FlowCounters);

impl Drop for CounterGuard<'_> {
    fn drop(&mut self) {
        let counters = self.0.kernel_counters().take();
        if let Some(KernelCounters(count)) = counters {
            let (up, down) = count();
            self.0.bytes_up.fetch_add(up, Ordering::Relaxed);
            self.0.bytes_down.fetch_add(down, Ordering::Relaxed);
        }
    }
}

/// A pair that an engine did not touch, and why.
#[derive(Debug)]
pub(crate) struct Declined {
    pub(crate) pair: SocketPair,
    pub(crate) reason: DeclineReason,
}

/// Why an engine declined a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeclineReason {
    /// splice: no pipe could be opened, for want of descriptors or memory.
    PipeUnavailable,
    /// sockmap, packet: the back end is a Unix socket.
    NotTcp,
    /// sockmap, packet: a socket is not established.
    HalfClosed,
    /// sockmap: the flow's entries could not be written, or a socket's byte counts not be read.
    NoFlowEntry,
    /// sockmap, packet: a map has no room.
    MapFull,
    /// sockmap: a socket could not be added to the map.
    SockmapUpdateFailed,
    /// packet: the back end was connected from a port that is not in `packet.ports`.
    NoSourcePort,
    /// packet: one connection is over IPv4 and the other one over IPv6.
    AddressFamilyMismatch,
    /// packet: a peer is on this host, so that its packets pass no interface.
    SameHost,
    /// packet: a socket could not be inspected.
    NotConnected,
    /// packet: a SYN carried data (RFC 7413).
    TcpFastOpen,
    /// packet: a connection has timestamps in microseconds.
    TcpUsecTimestamps,
    /// packet: one connection has timestamps and the other one has none (RFC 7323).
    TcpTimestamps,
    /// packet: one connection has selective acknowledgements and the other one has none (RFC 2018).
    TcpSack,
    /// packet: a peer may send larger segments than the other one can take.
    TcpMss,
    /// packet: the client's socket does not hold the hello any more.
    NoClientHelloQueued,
    /// packet: the programs left the flow with its sockets.
    Fallback(FallbackReason),
}

impl DeclineReason {
    /// The value of the label `reason` in metrics.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::PipeUnavailable => "pipe_unavailable",
            Self::NotTcp => "not_tcp",
            Self::HalfClosed => "half_closed",
            Self::NoFlowEntry => "no_flow_entry",
            Self::MapFull => "map_full",
            Self::SockmapUpdateFailed => "sockmap_update_failed",
            Self::NoSourcePort => "no_source_port",
            Self::AddressFamilyMismatch => "address_family_mismatch",
            Self::SameHost => "same_host",
            Self::NotConnected => "not_connected",
            Self::TcpFastOpen => "tcp_fast_open",
            Self::TcpUsecTimestamps => "tcp_usec_timestamps",
            Self::TcpTimestamps => "tcp_timestamps",
            Self::TcpSack => "tcp_sack",
            Self::TcpMss => "tcp_mss",
            Self::NoClientHelloQueued => "no_client_hello_queued",
            Self::Fallback(reason) => reason.label(),
        }
    }
}

/// How a carried connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlowEnd {
    /// Both sides closed in order.
    Closed,
    /// The client's side broke (reset, timeout, unreachable); the back end was reset.
    ClientReset,
    /// The back end's side broke; the client was reset.
    BackendReset,
    /// An operator reset both peers (`snisplit flows reset`).
    OperatorReset,
    /// This host could not carry the flow on, for want of memory, descriptors or buffers. Both peers were reset.
    LocalError(LocalErrorStage),
}

/// What the agent was doing when this host could not carry a flow on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LocalErrorStage {
    /// Registering a socket with an epoll instance.
    Register,
    /// Setting a socket option.
    SocketOption,
    /// Reading the state of a socket (`TCP_INFO`, `SIOCOUTQ`, poll(2)).
    SocketState,
    /// Reading from a socket.
    Read,
    /// Writing to a socket.
    Write,
    /// sockmap: adding a socket to the map when the program may have moved bytes.
    SockmapUpdate,
    /// sockmap: reading the flow entry of a direction, which is missing or which the program poisoned.
    FlowEntry,
    /// sockmap: reading the rest of a direction, of which bytes are missing.
    MissingBytes,
}

impl LocalErrorStage {
    fn log(self, error: &dyn fmt::Display) {
        debug!(stage = ?self, %error, "local error");
    }
}

impl FlowEnd {
    /// A short word for counters and logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::OperatorReset => "operator_reset",
            Self::LocalError(_) => "local_error",
        }
    }

    /// The end of a flow with a peer whose connection failed.
    const fn reset_by(peer: Peer) -> Self {
        match peer {
            Peer::Client => Self::ClientReset,
            Peer::Backend => Self::BackendReset,
        }
    }

    /// The end of a flow that this host could not carry on. Logs the error.
    pub(crate) fn local_error(stage: LocalErrorStage, error: &dyn fmt::Display) -> Self {
        stage.log(error);
        Self::LocalError(stage)
    }

    /// The end of a flow with an error of the socket to `peer`.
    fn from_io_error(peer: Peer, stage: LocalErrorStage, error: &io::Error) -> Self {
        match is_local_error(error) {
            true => Self::local_error(stage, error),
            false => Self::reset_by(peer),
        }
    }
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Client,
    Backend,
}

impl SocketPair {
    /// Joins two sockets, and gives the back end's the options that the client's has from its listener.
    ///
    /// # Errors
    /// Fails if an option of the back end's socket cannot be set.
    pub(crate) fn new(
        client: TcpStream,
        backend: Socket,
        counters: Arc<FlowCounters>,
    ) -> io::Result<Self> {
        backend.set_nodelay()?;
        Self::for_takeover(client, backend, counters)
    }

    /// Joins two sockets that the packet engine may take over.
    ///
    /// Leaves `TCP_NODELAY` for later: most of these flows lose their sockets before it matters.
    ///
    /// # Errors
    /// Fails if an option of the back end's socket cannot be set.
    pub(crate) fn for_takeover(
        client: TcpStream,
        backend: Socket,
        counters: Arc<FlowCounters>,
    ) -> io::Result<Self> {
        backend.set_reset_on_close()?;
        let client = Socket::Tcp(client);
        Ok(Self { client, backend, counters, route_id: 0, detach_bulk: false })
    }

    /// The same, for whoever waits on this runtime.
    fn rebind_to_runtime(self) -> io::Result<Self> {
        Ok(Self {
            client: self.client.rebind_to_runtime()?,
            backend: self.backend.rebind_to_runtime()?,
            ..self
        })
    }

    /// An engine takes the flow.
    fn set_engine(&self, engine: EngineKind) {
        self.counters.set_engine(engine);
    }

    fn socket(&self, peer: Peer) -> &Socket {
        match peer {
            Peer::Client => &self.client,
            Peer::Backend => &self.backend,
        }
    }

    /// Closes both sockets as `end` demands.
    async fn close(self, end: FlowEnd) -> FlowEnd {
        match end {
            FlowEnd::Closed => self.set_graceful_close(),
            FlowEnd::ClientReset => wait_send_queue_empty(&self.backend).await,
            FlowEnd::BackendReset => wait_send_queue_empty(&self.client).await,
            FlowEnd::LocalError(_) => {
                tokio::join!(
                    wait_send_queue_empty(&self.client),
                    wait_send_queue_empty(&self.backend)
                );
            }
            FlowEnd::OperatorReset => {}
        }
        end
    }

    fn set_graceful_close(&self) {
        [&self.client, &self.backend].into_iter().for_each(set_graceful_close);
    }
}

/// From now on closing the socket delivers what was written and ends the stream.
pub(crate) fn set_graceful_close(socket: &impl AsFd) {
    // Fails on a socket that is dead already: nothing left to deliver.
    let _dead = SockRef::from(socket).set_linger(None);
}

impl FlowCounters {
    /// Bytes that were delivered without an engine of the ladder.
    pub(crate) fn add_bytes(&self, up: usize, down: usize) {
        self.bytes_up.fetch_add(up as u64, Ordering::Relaxed);
        self.bytes_down.fetch_add(down as u64, Ordering::Relaxed);
    }

    /// Bytes up and down.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let (up, down) =
            self.kernel_counters().as_ref().map_or((0, 0), |KernelCounters(count)| count());
        (up + self.bytes_up.load(Ordering::Relaxed), down + self.bytes_down.load(Ordering::Relaxed))
    }

    fn kernel_counters(&self) -> MutexGuard<'_, Option<KernelCounters>> {
        self.kernel_counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `count` too, up and down, until the answer is dropped.
    fn attach_kernel_counters(
        &self,
        count: impl Fn() -> (u64, u64) + Send + 'static,
    ) -> CounterGuard<'_> {
        *self.kernel_counters() = Some(KernelCounters(Box::new(count)));
        CounterGuard(self)
    }

    fn set_engine(&self, engine: EngineKind) {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine);
    }

    /// The engine that took the flow last, once one has.
    pub(crate) fn engine(&self) -> Option<EngineKind> {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error of a socket is this host's own.
///
/// A resource ran out, or the agent misused a descriptor. Every other error is the peer's or the path's: the
/// kernel reports those of ICMP too (`icmp_err_convert`, net/ipv4/icmp.c).
pub(crate) fn is_local_error(error: &io::Error) -> bool {
    match Errno::from_io_error(error) {
        Some(errno) => matches!(
            errno,
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::NOBUFS
                | Errno::NOSPC
                | Errno::BADF
                | Errno::FAULT
                | Errno::INVAL
                | Errno::NOTSOCK
        ),
        // Tokio's, of a socket that its runtime does not know or does not serve any more.
        None => error.kind() == io::ErrorKind::Other,
    }
}

/// Waits until the peer has what was sent before the reset: a reset discards the send queue.
///
/// The kernel has no event for an empty send queue, hence the short looks with growing pauses.
async fn wait_send_queue_empty(socket: &impl AsFd) {
    let deadline = Instant::now() + RESET_FLUSH_TIMEOUT;
    let mut pause = Duration::from_micros(200);
    while Instant::now() < deadline && sys::unacked_bytes(socket).is_ok_and(|bytes| bytes > 0) {
        sleep(pause).await;
        pause *= 2;
    }
}
