//! `idle_timeout`: the end of a flow that moves no byte.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::engine::{FlowCounters, FlowEnd};
use crate::telemetry::Outcome;

/// No byte of a flow has moved for `idle_timeout`.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleTimeout;

/// The outcome of a flow that one engine carried to its end.
pub(super) fn outcome_from_end(end: Result<FlowEnd, IdleTimeout>) -> Outcome {
    match end {
        Ok(end) => Outcome::FlowEnded(end),
        Err(IdleTimeout) => Outcome::IdleTimeout,
    }
}

/// Waits for a future that carries a flow, unless the flow is idle for `idle_timeout`.
///
/// # Errors
///
/// No byte has moved for `idle_timeout`.
pub(super) async fn with_idle_timeout<T>(
    future: impl Future<Output = T>,
    idle_timeout: Option<Duration>,
    counters: &FlowCounters,
) -> Result<T, IdleTimeout> {
    match idle_timeout {
        None => Ok(future.await),
        Some(idle_timeout) => tokio::select! {
            result = future => Ok(result),
            () = wait_until_idle(counters, idle_timeout) => Err(IdleTimeout),
        },
    }
}

/// Waits until no byte has moved for `idle_timeout`. Samples the counters four times in that time, so
/// that it returns up to a quarter late.
async fn wait_until_idle(counters: &FlowCounters, idle_timeout: Duration) {
    let mut last = (counters.totals(), Instant::now());
    while last.1.elapsed() < idle_timeout {
        sleep(idle_timeout / 4).await;
        if counters.totals() != last.0 {
            last = (counters.totals(), Instant::now());
        }
    }
}
