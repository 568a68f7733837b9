//! Engines, which move the bytes of forwarded connections, and what they have in common.
//!
//! An engine owns the socket pair that it carries: [`Engine::carry`] either ends the flow or returns
//! the pair as it was ([`Declined`]). Once a byte has moved, an engine cannot decline. The copy engine
//! is the reference: every other engine delivers the same bytes, half-closes, resets and counts.
//!
//! The packet engine is the exception to the contract. Its BPF programs replace the socket pair, and
//! what remains for the agent is to wait for the end ([`CarryResult::Offloaded`]).
//!
//! Files below import this one, and this one imports only [`socket`].

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

/// Time that the remaining peer has to acknowledge what was sent before its connection is reset.
const RESET_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// An engine that carries socket pairs.
pub(crate) trait Engine {
    /// A pair that the engine did not touch. [`Infallible`](std::convert::Infallible) for an engine
    /// that takes every pair.
    type Declined;

    /// Carries both directions until both have ended.
    async fn carry(&self, pair: SocketPair) -> Result<FlowEnd, Self::Declined>;
}

/// Names of the engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// Copies with recv(2) and send(2) through a pooled buffer.
    Copy,
    /// Moves pages with splice(2) through a pooled pipe, and copies small messages.
    Splice,
    /// Redirects from socket to socket in a BPF program on a socket map.
    Sockmap,
    /// Translates packets in BPF programs on the interfaces. A flow has no sockets.
    Packet,
}

impl EngineKind {
    /// The name in configuration files, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Packet => "packet",
        }
    }
}

/// The two sockets of a flow, and what every engine must know of the flow.
///
/// TCP sockets have `SO_LINGER` with a timeout of 0 until the flow ends in order
/// ([`set_graceful_close`]). The client's socket has it from its listener. So both peers see a reset,
/// and never a false end of stream, whether the agent drops the pair, panics or is killed.
#[derive(Debug)]
pub(crate) struct SocketPair {
    client: Socket,
    backend: Socket,
    counters: Arc<FlowCounters>,
    /// Id of the flow's route in the `routes` map of the BPF programs.
    route_id: u32,
    /// Whether the sockmap engine leaves a direction to user space when its traffic becomes bulk.
    detach_bulk: bool,
}

/// One of the two peers of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Client,
    Backend,
}

/// Bytes and engine of a flow, which engines update and others read while the flow runs.
#[derive(Debug, Default)]
pub(crate) struct FlowCounters {
    /// Bytes that the back end's socket accepted, the hello included.
    bytes_up: AtomicU64,
    /// Bytes that the client's socket accepted.
    bytes_down: AtomicU64,
    engine: Mutex<Option<EngineKind>>,
    /// Counts of a BPF program, while one carries the flow.
    kernel_counters: Mutex<Option<KernelCounters>>,
}

/// Reads the bytes up and down that a BPF program has counted.
struct KernelCounters(Box<dyn Fn() -> (u64, u64) + Send>);

impl fmt::Debug for KernelCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelCounters").finish_non_exhaustive()
    }
}

/// Kernel counters that are attached to a flow. Dropping it detaches them and keeps their last values.
struct CounterGuard<'f>(&'f FlowCounters);

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

/// A socket pair that an engine did not touch, and why.
#[derive(Debug)]
pub(crate) struct Declined {
    pub(crate) pair: SocketPair,
    pub(crate) reason: DeclineReason,
}

/// Why an engine declined a flow. The engines that use a reason stand in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeclineReason {
    /// splice: pipe2(2) failed, for lack of descriptors or memory.
    PipeUnavailable,
    /// sockmap, packet: the back end is a Unix socket.
    NotTcp,
    /// sockmap, packet: a socket is not in the state ESTABLISHED.
    HalfClosed,
    /// sockmap: the flow's entries could not be inserted, or a socket's byte counts not be read.
    NoFlowEntry,
    /// sockmap, packet: a map is full.
    MapFull,
    /// sockmap: a socket could not be inserted in the source map.
    SockmapUpdateFailed,
    /// packet: the connection to the back end has no leased source port (`packet.ports`).
    NoSourcePort,
    /// packet: one connection is over IPv4, the other one over IPv6.
    AddressFamilyMismatch,
    /// packet: a peer is on this host, so that its packets pass no interface.
    SameHost,
    /// packet: the state of a socket could not be read.
    NotConnected,
    /// packet: a SYN carried data (RFC 7413).
    TcpFastOpen,
    /// packet: a connection has timestamps in microseconds (`TCPI_OPT_USEC_TS`).
    TcpUsecTimestamps,
    /// packet: only one of the connections has timestamps (RFC 7323 §3).
    TcpTimestamps,
    /// packet: only one of the connections has selective acknowledgements (RFC 2018).
    TcpSack,
    /// packet: a peer may send larger segments than the other one accepts.
    TcpMss,
    /// packet: the hello is not in the receive queue of the client's socket.
    NoClientHelloQueued,
    /// packet: the BPF programs left the flow with its sockets.
    Fallback(FallbackReason),
}

impl DeclineReason {
    /// The value of the metric label `reason`.
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

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlowEnd {
    /// Both peers ended their direction in order.
    Closed,
    /// The client's connection failed (reset, timeout, unreachable). The agent reset the back end's.
    ClientReset,
    /// The back end's connection failed. The agent reset the client's.
    BackendReset,
    /// An operator reset both connections (`snisplit flows reset`).
    OperatorReset,
    /// This host could not carry the flow on. The agent reset both connections.
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
    /// sockmap: inserting a socket in the source map, after the program may have moved bytes.
    SockmapUpdate,
    /// sockmap: reading the flow entry of a direction. The entry is missing or poisoned.
    FlowEntry,
    /// sockmap: reading a direction to its end. The socket received more bytes than the agent read.
    MissingBytes,
}

impl LocalErrorStage {
    /// Writes the error to the log.
    fn log(self, error: &dyn fmt::Display) {
        debug!(stage = ?self, %error, "local error");
    }
}

impl FlowEnd {
    /// The outcome in metrics and logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::OperatorReset => "operator_reset",
            Self::LocalError(_) => "local_error",
        }
    }

    /// The end of a flow whose connection to `peer` failed.
    const fn reset_by(peer: Peer) -> Self {
        match peer {
            Peer::Client => Self::ClientReset,
            Peer::Backend => Self::BackendReset,
        }
    }

    /// The end of a flow that this host could not carry on. Writes the error to the log.
    pub(crate) fn local_error(stage: LocalErrorStage, error: &dyn fmt::Display) -> Self {
        stage.log(error);
        Self::LocalError(stage)
    }

    /// The end of a flow with this error of the socket to `peer`.
    fn from_io_error(peer: Peer, stage: LocalErrorStage, error: &io::Error) -> Self {
        match is_local_error(error) {
            true => Self::local_error(stage, error),
            false => Self::reset_by(peer),
        }
    }
}

/// Whether an error of a socket is this host's own, and not that of the peer or of the path to it.
///
/// A resource ran out, or the agent misused a descriptor. The errors of a peer or a path are too many
/// to list: the kernel also reports those that came by ICMP (`icmp_err_convert`, net/ipv4/icmp.c).
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
        // Tokio reports a socket without a running runtime, and `Socket` an unregistered one.
        None => error.kind() == io::ErrorKind::Other,
    }
}

impl SocketPair {
    /// Joins two sockets. Gives the back end's socket the options that the client's has from its
    /// listener: `TCP_NODELAY`, and `SO_LINGER` with a timeout of 0.
    ///
    /// # Errors
    /// Fails if setsockopt(2) fails.
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
    /// Does not set `TCP_NODELAY` on the back end's socket. Most of these flows lose their sockets
    /// before it matters; those that keep them get it later.
    ///
    /// # Errors
    /// Fails if setsockopt(2) fails.
    pub(crate) fn for_takeover(
        client: TcpStream,
        backend: Socket,
        counters: Arc<FlowCounters>,
    ) -> io::Result<Self> {
        backend.set_reset_on_close()?;
        let client = Socket::Tcp(client);
        Ok(Self { client, backend, counters, route_id: 0, detach_bulk: false })
    }

    /// Registers both sockets with the runtime of the calling task.
    fn rebind_to_runtime(self) -> io::Result<Self> {
        Ok(Self {
            client: self.client.rebind_to_runtime()?,
            backend: self.backend.rebind_to_runtime()?,
            ..self
        })
    }

    /// Records the engine that carries the flow from this call on.
    fn set_engine(&self, engine: EngineKind) {
        self.counters.set_engine(engine);
    }

    fn socket(&self, peer: Peer) -> &Socket {
        match peer {
            Peer::Client => &self.client,
            Peer::Backend => &self.backend,
        }
    }

    /// Closes both sockets in the way that `end` asks for, and returns `end`.
    async fn close(self, end: FlowEnd) -> FlowEnd {
        match end {
            FlowEnd::Closed => self.set_graceful_close(),
            FlowEnd::ClientReset => wait_send_queue_empty(&self.backend).await,
            FlowEnd::BackendReset => wait_send_queue_empty(&self.client).await,
            FlowEnd::LocalError(_) => {
                let (client, backend) = (&self.client, &self.backend);
                tokio::join!(wait_send_queue_empty(client), wait_send_queue_empty(backend));
            }
            FlowEnd::OperatorReset => {}
        }
        end
    }

    fn set_graceful_close(&self) {
        [&self.client, &self.backend].into_iter().for_each(set_graceful_close);
    }
}

/// Makes close(2) deliver what was written and then end the stream, where it would have sent a reset.
pub(crate) fn set_graceful_close(socket: &impl AsFd) {
    // Fails on a socket whose connection is gone: nothing is left to deliver.
    let _gone = SockRef::from(socket).set_linger(None);
}

impl FlowCounters {
    /// Adds bytes that the agent delivered without an engine.
    pub(crate) fn add_bytes(&self, up: usize, down: usize) {
        self.bytes_up.fetch_add(up as u64, Ordering::Relaxed);
        self.bytes_down.fetch_add(down as u64, Ordering::Relaxed);
    }

    /// Returns the bytes up and down.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let (up, down) =
            self.kernel_counters().as_ref().map_or((0, 0), |KernelCounters(count)| count());
        (up + self.bytes_up.load(Ordering::Relaxed), down + self.bytes_down.load(Ordering::Relaxed))
    }

    fn kernel_counters(&self) -> MutexGuard<'_, Option<KernelCounters>> {
        self.kernel_counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what `count` returns, bytes up and down, to the totals until the guard is dropped.
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

    /// Returns the last engine that carried the flow; `None` before the first one.
    pub(crate) fn engine(&self) -> Option<EngineKind> {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the peer has acknowledged what was sent, or for [`RESET_FLUSH_TIMEOUT`]. A reset
/// discards the send queue.
///
/// The kernel has no event for an empty send queue, so this polls with growing pauses.
async fn wait_send_queue_empty(socket: &impl AsFd) {
    let deadline = Instant::now() + RESET_FLUSH_TIMEOUT;
    let mut pause = Duration::from_micros(200);
    while Instant::now() < deadline && sys::unacked_bytes(socket).is_ok_and(|bytes| bytes > 0) {
        sleep(pause).await;
        pause *= 2;
    }
}
