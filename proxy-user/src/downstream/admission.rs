//! Limits on connections, on connections without a complete hello, and on the flows of a source.
//!
//! A connection holds permits until it ends; dropping a permit returns it. A reload keeps the counts. The
//! limits are those of the configuration under which a connection was accepted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use snisplit_common::limits::{SourcePrefix, TokenBucket};

use crate::config::Limits;
use crate::telemetry::RejectReason;

/// Number of connections without a complete hello that a source may have on top of
/// `max_connections_per_source`. Only the hello tells an ACME validation from other connections.
const ACME_VALIDATION_BURST: usize = 16;

/// Counts of connections. A clone shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionLimiter(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    pending_handshakes: usize,
    pending_by_source: HashMap<SourcePrefix, usize>,
    flows_by_source: HashMap<SourcePrefix, usize>,
    accept_limit: Option<AcceptRateLimit>,
}

/// State of `limits.accept_rate`.
#[derive(Debug)]
struct AcceptRateLimit {
    /// Connections a second.
    rate: u32,
    started_at: Instant,
    bucket: TokenBucket,
}

/// Permit of a connection without a complete hello.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    limiter: ConnectionLimiter,
    source: Option<SourcePrefix>,
}

/// Permit of an open connection.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(ConnectionLimiter);

/// Permit of a flow of a source.
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

impl ConnectionLimiter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection that has not sent its hello. A trusted proxy does not count as a source,
    /// because it forwards the connections of many clients.
    ///
    /// # Errors
    ///
    /// A limit is reached.
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

    /// Counts a flow of its source.
    ///
    /// # Errors
    ///
    /// The source has `max_connections_per_source` flows.
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
}

impl Counts {
    /// Counts a connection against `rate` connections a second, with bursts of as many. A rate of 0 is
    /// no limit.
    fn is_within_accept_rate(&mut self, rate: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let limit = match self.accept_limit.take() {
            Some(limit) if limit.rate == rate => self.accept_limit.insert(limit),
            Some(_) | None => self.accept_limit.insert(AcceptRateLimit {
                rate,
                started_at: Instant::now(),
                bucket: TokenBucket::new(rate, rate),
            }),
        };
        limit.bucket.try_acquire(limit.started_at.elapsed())
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
