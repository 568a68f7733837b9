//! A flow that goes on without its connection: all that is kept until its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Shared;
use super::admit::{Flow, OwnAddress, Present};
use super::backends::Connected;
use crate::engine::packet::Flight;
use crate::engine::{End, Tally, Tier};
use crate::observe::{Outcome, Record};

/// What becomes of a connection.
pub(super) enum Life {
    /// It has ended.
    Over(Outcome),
    /// Nothing is left to do but to wait for the end, in these places.
    Flying(Box<Flight>, Box<Places>),
}

impl From<Outcome> for Life {
    fn from(outcome: Outcome) -> Self {
        Self::Over(outcome)
    }
}

/// What a forwarded connection counts as, until this is dropped.
pub(super) struct Places {
    pub(super) _present: Present,
    pub(super) _flow: Option<Flow>,
    pub(super) _counted: Connected,
    pub(super) _own: Option<OwnAddress>,
}

/// A flow in flight. In the order that its parts go in: it is told of last.
pub(super) struct Aloft {
    pub(super) flight: Box<Flight>,
    /// One of a former agent has none.
    pub(super) _places: Option<Box<Places>>,
    pub(super) tally: Arc<Tally>,
    /// `idle_timeout`
    pub(super) limit: Option<Duration>,
    pub(super) record: Record,
}

/// Waits for the end, and tells of it.
#[expect(clippy::manual_async_fn, reason = "that would hold what it takes twice")]
pub(super) fn watch(mut aloft: Aloft, shared: Arc<Shared>) -> impl Future<Output = ()> {
    async move {
        let Aloft { record, tally, flight, limit, .. } = &mut aloft;
        let outcome = tokio::select! {
            end = unless_idle(flight.land(), *limit, tally) => of(end),
            () = shared.cut.cancelled() => Outcome::Cut,
        };
        record.conclude(outcome, tally);
    }
}

impl Record {
    /// The end, what was carried, and by which engine.
    pub(super) fn conclude(&mut self, outcome: Outcome, tally: &Tally) {
        self.outcome = outcome;
        (self.entry.up, self.entry.down) = tally.read();
        self.entry.engine = self.entry.engine.or(tally.tier().map(Tier::name));
    }
}

/// How a flow has ended, if that was not for idleness.
pub(super) fn of(end: Option<End>) -> Outcome {
    end.map_or(Outcome::Idle, |end| Outcome::Carried(end.name()))
}

/// Carries a flow to its end. `None`: no byte has moved for `limit`.
pub(super) async fn unless_idle<T>(
    carried: impl Future<Output = T>,
    limit: Option<Duration>,
    tally: &Tally,
) -> Option<T> {
    match limit {
        None => Some(carried.await),
        Some(limit) => tokio::select! {
            end = carried => Some(end),
            () = idle(tally, limit) => None,
        },
    }
}

/// Waits until no byte has moved for `limit`, give or take a quarter of it.
async fn idle(tally: &Tally, limit: Duration) {
    let mut last = (tally.read(), Instant::now());
    while last.1.elapsed() < limit {
        sleep(limit / 4).await;
        if tally.read() != last.0 {
            last = (tally.read(), Instant::now());
        }
    }
}
