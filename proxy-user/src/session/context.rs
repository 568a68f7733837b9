//! State of the agent that all connections share, and state of one connection.

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
use crate::upstream::loop_detector::LoopDetector;
use crate::upstream::resolve::Resolver;
use crate::upstream::select::Backends;

/// State that all connections of the agent share.
pub(crate) struct Shared {
    /// A reload replaces it. A connection keeps the configuration under which it was accepted.
    pub(crate) config: ArcSwap<Config>,
    pub(crate) engine_selector: EngineSelector,
    pub(crate) limiter: ConnectionLimiter,
    pub(crate) loop_detector: LoopDetector,
    pub(crate) backends: Backends,
    pub(crate) resolver: Resolver,
    pub(crate) cert_store: CertStore,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) acme_log: AcmeLog,
    /// The multi-threaded runtime. Flows continue here after a handover, and the agent terminates TLS here.
    pub(crate) main_runtime: Handle,
    /// Cancelled when the drain ends: every connection is reset.
    pub(crate) abort: CancellationToken,
}

/// References to what the steps of one connection use.
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

    /// Counts a flow of the client's source.
    ///
    /// # Errors
    ///
    /// The source has `max_connections_per_source` flows.
    pub(super) fn admit_flow(self, record: &Record) -> Result<FlowPermit, RejectReason> {
        self.shared.limiter.acquire_flow(record.entry.client.ip(), &self.config.limits)
    }
}

/// What a client sent before the decision.
pub(super) struct ClientPreamble {
    pub(super) hello: Box<ClientHello>,
    /// What the back end must get before the hello.
    pub(super) replay: StarttlsReplay,
}

/// State that a connection keeps until its end, whichever task serves it.
pub(crate) struct Session {
    pub(crate) config: Arc<Config>,
    pub(crate) counters: Arc<FlowCounters>,
    pub(crate) record: Record,
}

impl Session {
    /// Completes the record. Dropping the session counts and logs it.
    pub(crate) fn conclude(&mut self, outcome: Outcome) {
        self.record.conclude(outcome, &self.counters);
    }
}

impl Record {
    /// Sets the outcome, the bytes and the engine.
    pub(crate) fn conclude(&mut self, outcome: Outcome, counters: &FlowCounters) {
        self.outcome = outcome;
        (self.entry.bytes_up, self.entry.bytes_down) = counters.totals();
        self.entry.engine = self.entry.engine.or(counters.engine().map(EngineKind::name));
    }
}
