//! Engines carry the bytes of a forwarded connection, and the ladder picks one.
//!
//! The contract is ownership: [`Engine::carry`] takes a pair of sockets to their end, or hands them
//! back as they were. After the first byte there is no handing back. `copy` is the reference; every
//! other engine gives the same bytes, half-closes, resets and tally. `packet` does not carry a pair but
//! takes its place: what is left then is to wait ([`Course::Flying`]).

use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::sys;

pub(crate) mod copy;
mod course;
mod end;
mod ladder;
mod pace;
pub(crate) mod packet;
pub(crate) mod probe;
mod relay;
mod socket;
pub(crate) mod sockmap;
pub(crate) mod splice;

use course::Carried;
pub(crate) use course::{Course, Grown};
pub(crate) use end::End;
pub(crate) use ladder::{Choice, Ladder, Listener};
pub(crate) use socket::{Socket, Upkeep, here};

/// How long bytes on their way to the surviving peer may take before the reset follows them.
const RESET_FLUSH: Duration = Duration::from_secs(1);

/// Takes a pair of sockets to their end, or hands them back as they were.
pub(crate) trait Engine {
    /// What handing back looks like; [`Infallible`](std::convert::Infallible) for the last rung.
    type Declined;

    /// Carries both directions until both have ended.
    async fn carry(&self, pair: Pair) -> Result<End, Self::Declined>;
}

/// The engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// read(2) and write(2) through a pooled buffer.
    Copy,
    /// splice(2) through a pooled pipe; what is small is copied.
    Splice,
    /// A verdict program on a socket map.
    Sockmap,
    /// Packets are translated; there are no sockets.
    Packet,
}

impl Tier {
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
pub(crate) struct Pair {
    client: Socket,
    backend: Socket,
    tally: Arc<Tally>,
    /// Its route's number among the pins.
    route: u32,
    /// Whether a direction that turns bulk is to leave the kernel.
    may_turn_bulk: bool,
    /// What the packet engine must know of it, if that may have it.
    terms: Option<Box<packet::Terms>>,
}

/// The account of a flow while it runs, for whoever watches it, and when it has ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Bytes from the client that the back end's socket took, the hello included.
    up: AtomicU64,
    /// Bytes from the back end that the client's socket took.
    down: AtomicU64,
    tier: Mutex<Option<Tier>>,
    /// Counts what moves where user space does not see it.
    meter: Mutex<Option<Meter>>,
}

struct Meter(Box<dyn Fn() -> (u64, u64) + Send>);

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

/// A meter that is read; dropping it adds what it says to the tally.
struct Metered<'t>(&'t Tally);

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        let meter = self.0.meter().take();
        if let Some(Meter(count)) = meter {
            let (up, down) = count();
            self.0.up.fetch_add(up, Ordering::Relaxed);
            self.0.down.fetch_add(down, Ordering::Relaxed);
        }
    }
}

/// A pair that an engine did not touch, and why.
#[derive(Debug)]
pub(crate) struct Declined {
    pub(crate) pair: Pair,
    pub(crate) reason: &'static str,
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

impl Pair {
    /// Arms the back end's socket as the listener armed the client's; what it needs only if it lasts, one that
    /// the packet engine may have is given later (`take_care`).
    pub(crate) fn new(
        client: TcpStream,
        (backend, terms): (Socket, Option<Box<packet::Terms>>),
        tally: Arc<Tally>,
    ) -> std::io::Result<Self> {
        backend.end_by_reset()?;
        if terms.is_none() {
            backend.hasten()?;
        }
        let client = Socket::Tcp(client);
        Ok(Self { client, backend, tally, route: 0, may_turn_bulk: false, terms })
    }

    /// The same, for whoever waits on this runtime.
    fn here(self) -> std::io::Result<Self> {
        Ok(Self { client: self.client.here()?, backend: self.backend.here()?, ..self })
    }

    /// An engine takes the flow.
    fn settle(&self, tier: Tier) {
        self.tally.settle(tier);
    }

    fn socket(&self, side: Side) -> &Socket {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }

    /// Closes both sockets as `end` demands.
    async fn close(self, end: End) -> End {
        match end {
            End::Closed => self.close_in_order(),
            End::ClientReset => flush(&self.backend).await,
            End::BackendReset => flush(&self.client).await,
            End::Cut => {}
        }
        end
    }

    fn close_in_order(&self) {
        [&self.client, &self.backend].into_iter().for_each(without_reset);
    }
}

/// From now on closing the socket delivers what was written and ends the stream.
pub(crate) fn without_reset(socket: &impl AsFd) {
    // Fails on a socket that is dead already: nothing left to deliver.
    let _dead = SockRef::from(socket).set_linger(None);
}

impl Tally {
    /// Bytes that were delivered without an engine of the ladder.
    pub(crate) fn tell(&self, up: usize, down: usize) {
        self.up.fetch_add(up as u64, Ordering::Relaxed);
        self.down.fetch_add(down as u64, Ordering::Relaxed);
    }

    /// Bytes up and down.
    pub(crate) fn read(&self) -> (u64, u64) {
        let (up, down) = self.meter().as_ref().map_or((0, 0), |Meter(count)| count());
        (up + self.up.load(Ordering::Relaxed), down + self.down.load(Ordering::Relaxed))
    }

    fn meter(&self) -> MutexGuard<'_, Option<Meter>> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `count` too, up and down, until the answer is dropped.
    fn metered(&self, count: impl Fn() -> (u64, u64) + Send + 'static) -> Metered<'_> {
        *self.meter() = Some(Meter(Box::new(count)));
        Metered(self)
    }

    fn settle(&self, tier: Tier) {
        *self.tier.lock().unwrap_or_else(PoisonError::into_inner) = Some(tier);
    }

    /// The engine that took the flow last, once one has.
    pub(crate) fn tier(&self) -> Option<Tier> {
        *self.tier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the peer has what was sent before the reset: a reset discards the send queue.
///
/// The kernel has no event for an empty send queue, hence the short looks with growing pauses.
async fn flush(survivor: &impl AsFd) {
    let deadline = Instant::now() + RESET_FLUSH;
    let mut pause = Duration::from_micros(200);
    while Instant::now() < deadline && sys::unacknowledged(survivor).is_ok_and(|bytes| bytes > 0) {
        sleep(pause).await;
        pause *= 2;
    }
}
