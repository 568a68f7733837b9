//! What all connections share, and what one connection has.

use std::sync::Arc;

use arc_swap::ArcSwap;
use snisplit_common::client_hello::ClientHello;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::certs::CertStore;
use crate::config::Config;
use crate::downstream::admission::{ConnectionLimiter, FlowPermit};
use crate::engine::{EngineKind, EngineSelector, FlowCounters};
use crate::telemetry::record::Telemetry;
use crate::telemetry::{AcmeLog, Metrics, Outcome, Record, RejectReason};
use crate::upstream::dialer::StarttlsReplay;
use crate::upstream::resolve::Resolver;
use crate::upstream::select::Backends;

/// What every connection of the agent shares.
pub(crate) struct Shared {
    /// Swapped at a reload; a connection keeps the one it was accepted under.
    pub(crate) config: ArcSwap<Config>,
    pub(crate) engine_selector: EngineSelector,
    pub(crate) limiter: ConnectionLimiter,
    pub(crate) backends: Backends,
    pub(crate) resolver: Resolver,
    pub(crate) cert_store: CertStore,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) acme_log: AcmeLog,
    /// The runtime of all cores, where what is no longer young is carried, and what is ours decrypted.
    pub(crate) main_runtime: Handle,
    /// Ends all connections at once.
    pub(crate) abort: CancellationToken,
}

/// What surrounds one connection.
#[derive(Clone, Copy)]
pub(super) struct ConnContext<'s> {
    pub(super) config: &'s Config,
    pub(super) shared: &'s Shared,
    pub(super) counters: &'s Arc<FlowCounters>,
}

impl<'s> ConnContext<'s> {
    pub(super) fn metrics(self) -> &'s Metrics {
        &self.shared.telemetry.metrics
    }

    /// Counts a flow against its source.
    pub(super) fn admit_flow(self, record: &Record) -> Result<FlowPermit, RejectReason> {
        self.shared.limiter.acquire_flow(record.entry.client.ip(), &self.config.limits)
    }
}

/// What a client sent before its connection was decided.
pub(super) struct ClientPreamble {
    pub(super) hello: Box<ClientHello>,
    pub(super) replay: StarttlsReplay,
}

/// What a connection has to its end, whichever task serves it.
pub(crate) struct Session {
    pub(crate) config: Arc<Config>,
    pub(crate) counters: Arc<FlowCounters>,
    pub(crate) record: Record,
}

impl Session {
    pub(crate) fn conclude(&mut self, outcome: Outcome) {
        self.record.conclude(outcome, &self.counters);
    }
}

impl Record {
    /// The end, what was carried, and by which engine.
    pub(crate) fn conclude(&mut self, outcome: Outcome, counters: &FlowCounters) {
        self.outcome = outcome;
        (self.entry.bytes_up, self.entry.bytes_down) = counters.totals();
        self.entry.engine = self.entry.engine.or(counters.engine().map(EngineKind::name));
    }
}
