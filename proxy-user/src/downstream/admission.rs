//! Who may come in: caps on connections, on those that have not said their hello, and on sources.
//!
//! A permit is held for as long as its connection; dropping it is what counts down. The numbers
//! survive a reload, the limits are those of the configuration that a connection came under.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use snisplit_common::limits::{SourcePrefix, TokenBucket};

use crate::config::Limits;
use crate::telemetry::RejectReason;

/// Connections of one source that may wait with their hello beyond its cap on flows: a CA's
/// validations must get as far as being told from others.
const ACME_VALIDATION_BURST: usize = 16;

/// The door.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionLimiter(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    pending_handshakes: usize,
    pending_by_source: HashMap<SourcePrefix, usize>,
    flows_by_source: HashMap<SourcePrefix, usize>,
    /// Addresses that we dial back ends of this very host from.
    local_addrs: HashSet<SocketAddr>,
    accept_bucket: Option<(u32, Instant, TokenBucket)>,
}

/// A place inside, for a connection that has still to say its hello.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    limiter: ConnectionLimiter,
    source: Option<SourcePrefix>,
}

/// A place inside, for any connection.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(ConnectionLimiter);

/// A place among the flows of a source.
#[derive(Debug)]
pub(crate) struct FlowPermit {
    limiter: ConnectionLimiter,
    source: SourcePrefix,
}

/// Permits of a forwarded connection, held until it ends.
#[derive(Debug)]
pub(crate) struct ClientPermits {
    pub(crate) _connection: ConnectionPermit,
    /// `None` for a validation, which does not count as a flow of its source.
    pub(crate) _flow: Option<FlowPermit>,
}

/// An address of ours that must not come back to us.
#[derive(Debug)]
pub(crate) struct LoopGuard {
    limiter: ConnectionLimiter,
    address: SocketAddr,
}

impl ConnectionLimiter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, to say its hello. A trusted proxy is no source: it speaks for many.
    pub(crate) fn acquire(
        &self,
        client_addr: SocketAddr,
        is_trusted_proxy: bool,
        limits: &Limits,
    ) -> Result<(ConnectionPermit, HandshakePermit), RejectReason> {
        let source = (!is_trusted_proxy).then(|| SourcePrefix::from_address(client_addr.ip()));
        let mut counts = self.lock();
        if counts.connections >= limits.max_connections {
            return Err(RejectReason::MaxConnections);
        }
        if counts.pending_handshakes >= limits.max_pending_handshakes {
            return Err(RejectReason::MaxPendingHandshakes);
        }
        if let Some(source) = source {
            let pending = counts.pending_by_source.get(&source).copied().unwrap_or_default();
            if pending >= limits.max_connections_per_source.saturating_add(ACME_VALIDATION_BURST) {
                return Err(RejectReason::MaxConnectionsPerSource);
            }
        }
        if !counts.is_within_accept_rate(limits.accept_rate) {
            return Err(RejectReason::AcceptRate);
        }
        counts.connections += 1;
        counts.pending_handshakes += 1;
        if let Some(source) = source {
            *counts.pending_by_source.entry(source).or_default() += 1;
        }
        Ok((ConnectionPermit(self.clone()), HandshakePermit { limiter: self.clone(), source }))
    }

    /// Counts a flow against its source.
    pub(crate) fn acquire_flow(
        &self,
        client: IpAddr,
        limits: &Limits,
    ) -> Result<FlowPermit, RejectReason> {
        let source = SourcePrefix::from_address(client);
        let mut counts = self.lock();
        let flows = counts.flows_by_source.entry(source).or_default();
        if *flows >= limits.max_connections_per_source {
            return Err(RejectReason::MaxConnectionsPerSource);
        }
        *flows += 1;
        Ok(FlowPermit { limiter: self.clone(), source })
    }

    /// Whether a connection that has said its hello is one that we dialled ourselves. Not before:
    /// the address is noted before the hello is sent.
    pub(crate) fn is_loop(&self, client_addr: SocketAddr) -> bool {
        self.lock().local_addrs.contains(&client_addr)
    }

    /// Notes an address that we dial this very host from.
    pub(crate) fn register_local_addr(&self, address: SocketAddr) -> LoopGuard {
        self.lock().local_addrs.insert(address);
        LoopGuard { limiter: self.clone(), address }
    }
}

impl Counts {
    /// `rate` connections a second, and as many at once; 0 is no limit.
    fn is_within_accept_rate(&mut self, rate: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let (_, started_at, bucket) = match self.accept_bucket.take() {
            Some(same) if same.0 == rate => self.accept_bucket.insert(same),
            _ => self.accept_bucket.insert((rate, Instant::now(), TokenBucket::new(rate, rate))),
        };
        bucket.try_acquire(started_at.elapsed())
    }
}

fn decrement(counts: &mut HashMap<SourcePrefix, usize>, source: SourcePrefix) {
    if let Entry::Occupied(mut entry) = counts.entry(source) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut counts = self.limiter.lock();
        counts.pending_handshakes -= 1;
        if let Some(source) = self.source {
            decrement(&mut counts.pending_by_source, source);
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.lock().connections -= 1;
    }
}

impl Drop for FlowPermit {
    fn drop(&mut self) {
        decrement(&mut self.limiter.lock().flows_by_source, self.source);
    }
}

impl Drop for LoopGuard {
    fn drop(&mut self) {
        self.limiter.lock().local_addrs.remove(&self.address);
    }
}
