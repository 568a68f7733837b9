//! Flows that another task continues: offloaded to the packet engine's programs, or after a handover.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::engine::packet::OffloadedFlow;
use crate::engine::{FlowCounters, Handover};
use crate::session::context::{Session, Shared};
use crate::session::idle_timeout::{outcome_from_end, with_idle_timeout};
use crate::session::next_step::Permits;
use crate::telemetry::{Outcome, Record};

/// An offloaded flow. Its fields are dropped in this order: the record last, after all permits.
pub(crate) struct OffloadedConn {
    pub(crate) flow: Box<OffloadedFlow>,
    /// `None` for an adopted flow.
    pub(crate) _permits: Option<Box<Permits>>,
    pub(crate) counters: Arc<FlowCounters>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) record: Record,
}

/// Waits for the end of an offloaded flow, and completes its record.
#[expect(clippy::manual_async_fn, reason = "an async fn would store its arguments twice")]
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

/// Continues a flow after a handover until it ends, and completes its record.
#[expect(clippy::manual_async_fn, reason = "an async fn would store its arguments twice")]
pub(crate) fn run_handover(
    mut session: Session,
    handover: Box<Handover>,
    permits: Box<Permits>,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        // Dropped before the record.
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
