//! A flow that goes on without the task of its connection: all that is kept until its end.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::engine::packet::OffloadedFlow;
use crate::engine::{FlowCounters, Handover};
use crate::session::context::{Session, Shared};
use crate::session::idle_timeout::{outcome_from_end, with_idle_timeout};
use crate::session::next_step::Permits;
use crate::telemetry::{Outcome, Record};

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

/// Carries what has grown up to its end, and tells of it.
#[expect(clippy::manual_async_fn, reason = "that would hold what it takes twice")]
pub(crate) fn run_handover(
    mut session: Session,
    handover: Box<Handover>,
    permits: Box<Permits>,
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
