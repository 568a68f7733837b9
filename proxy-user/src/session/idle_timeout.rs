//! `idle_timeout`: resets a flow that moves no byte.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::engine::{FlowCounters, FlowEnd};
use crate::telemetry::Outcome;

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
