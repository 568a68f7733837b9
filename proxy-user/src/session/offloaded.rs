//! A flow that goes on without the task of its connection: all that is kept until its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::config::Config;
use crate::downstream::admission::{ConnectionPermit, FlowPermit, LoopGuard};
use crate::engine::packet::OffloadedFlow;
use crate::engine::{EngineKind, FlowCounters, FlowEnd, Handover};
use crate::session::Shared;
use crate::session::terminate::PendingTermination;
use crate::telemetry::{Outcome, Record};
use crate::upstream::select::ConnectionGuard;

/// What becomes of a connection.
pub(crate) enum NextStep {
    /// It has ended.
    Done(Outcome),
    /// Nothing is left to do but to wait for the end, in these places.
    Offloaded(Box<OffloadedFlow>, Box<Permits>),
    /// It is to be carried on, in these places, where a core is free.
    Handover(Box<Handover>, Box<Permits>),
    /// It is to be terminated, in this place, where a core is free: that takes many times as long.
    Terminate(Box<PendingTermination>, ConnectionPermit),
}

impl From<Outcome> for NextStep {
    fn from(outcome: Outcome) -> Self {
        Self::Done(outcome)
    }
}

/// What a forwarded connection counts as, until this is dropped.
pub(crate) struct Permits {
    pub(crate) _connection_permit: ConnectionPermit,
    pub(crate) _flow_permit: Option<FlowPermit>,
    pub(crate) _connection_guard: ConnectionGuard,
    pub(crate) _loop_guard: Option<LoopGuard>,
}

/// A flow in flight. In the order that its parts go in: it is told of last.
pub(crate) struct OffloadedConn {
    pub(crate) flow: Box<OffloadedFlow>,
    /// One of a former agent has none.
    pub(crate) _permits: Option<Box<Permits>>,
    pub(crate) counters: Arc<FlowCounters>,
    /// `idle_timeout`
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) record: Record,
}

/// Waits for the end, and tells of it.
#[expect(clippy::manual_async_fn, reason = "that would hold what it takes twice")]
pub(crate) fn run_offloaded(
    mut offloaded: OffloadedConn,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        let OffloadedConn { record, counters, flow, idle_timeout, .. } = &mut offloaded;
        let outcome = tokio::select! {
            end = with_idle_timeout(flow.wait_end(), *idle_timeout, counters) => outcome_from_end(end),
            () = shared.abort.cancelled() => Outcome::Shutdown,
        };
        record.conclude(outcome, counters);
    }
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

/// Carries what has grown up to its end, and tells of it.
#[expect(clippy::manual_async_fn, reason = "that would hold what it takes twice")]
pub(crate) fn run_handover(
    mut session: Session,
    (handover, permits): (Box<Handover>, Box<Permits>),
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        // Given back before it is told of.
        let _permits = permits;
        let Config { engine, limits, .. } = &*session.config;
        let route = session.record.entry.route.clone().unwrap_or_default();
        let metrics = &shared.telemetry.metrics;
        let relay =
            Box::pin(shared.engine_selector.carry_handover(*engine, *handover, &route, metrics));
        let outcome = tokio::select! {
            end = with_idle_timeout(relay, limits.idle_timeout, &session.counters) => outcome_from_end(end),
            () = shared.abort.cancelled() => Outcome::Shutdown,
        };
        session.conclude(outcome);
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

/// How a flow has ended, if that was not for idleness.
pub(crate) fn outcome_from_end(end: Option<FlowEnd>) -> Outcome {
    end.map_or(Outcome::IdleTimeout, |end| Outcome::FlowEnded(end.label()))
}

/// Carries a flow to its end. `None`: no byte has moved for `limit`.
pub(crate) async fn with_idle_timeout<T>(
    future: impl Future<Output = T>,
    idle_timeout: Option<Duration>,
    counters: &FlowCounters,
) -> Option<T> {
    match idle_timeout {
        None => Some(future.await),
        Some(idle_timeout) => tokio::select! {
            result = future => Some(result),
            () = wait_until_idle(counters, idle_timeout) => None,
        },
    }
}

/// Waits until no byte has moved for `limit`, give or take a quarter of it.
async fn wait_until_idle(counters: &FlowCounters, idle_timeout: Duration) {
    let mut last = (counters.totals(), Instant::now());
    while last.1.elapsed() < idle_timeout {
        sleep(idle_timeout / 4).await;
        if counters.totals() != last.0 {
            last = (counters.totals(), Instant::now());
        }
    }
}
