//! Engines carry the bytes of a forwarded connection, and the ladder picks one.
//!
//! The contract is ownership: [`Engine::carry`] takes a pair of sockets to their end, or hands them
//! back as they were. After the first byte there is no handing back. `copy` is the reference; every
//! other engine gives the same bytes, half-closes, resets and tally. `packet` does not carry a pair but
//! takes its place: what is left then is to wait ([`CarryResult::Offloaded`]).

use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::sys;

mod carry_result;
mod classifier;
pub(crate) mod copy;
mod flow_end;
pub(crate) mod packet;
mod selector;
pub(crate) mod self_test;
mod socket;
pub(crate) mod sockmap;
pub(crate) mod splice;
mod transfer;

use carry_result::StepResult;
pub(crate) use carry_result::{CarryResult, Handover};
pub(crate) use flow_end::FlowEnd;
pub(crate) use selector::{EngineChoice, EngineObserver, EngineSelector};
pub(crate) use socket::{Socket, TcpTimeouts, rebind_to_runtime};

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
    /// What the packet engine must know of it, if that may have it.
    takeover: Option<Box<packet::TakeoverParams>>,
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
    pub(crate) reason: &'static str,
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Client,
    Backend,
}

impl SocketPair {
    /// Arms the back end's socket as the listener armed the client's; what it needs only if it lasts, one that
    /// the packet engine may have is given later (`take_care`).
    pub(crate) fn new(
        client: TcpStream,
        (backend, takeover): (Socket, Option<Box<packet::TakeoverParams>>),
        counters: Arc<FlowCounters>,
    ) -> std::io::Result<Self> {
        backend.set_reset_on_close()?;
        if takeover.is_none() {
            backend.set_nodelay()?;
        }
        let client = Socket::Tcp(client);
        Ok(Self { client, backend, counters, route_id: 0, detach_bulk: false, takeover })
    }

    /// The same, for whoever waits on this runtime.
    fn rebind_to_runtime(self) -> std::io::Result<Self> {
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
