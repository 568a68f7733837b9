//! A flow that goes on without the task of its connection: all that is kept until its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Shared;
use super::admit::{Flow, OwnAddress, Present};
use super::backends::Connected;
use super::terminate::Ours;
use crate::config::Config;
use crate::engine::packet::Flight;
use crate::engine::{End, Grown, Tally, Tier};
use crate::observe::{Outcome, Record};

/// What becomes of a connection.
pub(super) enum Life {
    /// It has ended.
    Over(Outcome),
    /// Nothing is left to do but to wait for the end, in these places.
    Flying(Box<Flight>, Box<Places>),
    /// It is to be carried on, in these places, where a core is free.
    Grown(Box<Grown>, Box<Places>),
    /// It is to be terminated, in this place, where a core is free: that takes many times as long.
    Ours(Box<Ours>, Present),
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

/// What a connection has to its end, whichever task serves it.
pub(super) struct Account {
    pub(super) config: Arc<Config>,
    pub(super) tally: Arc<Tally>,
    pub(super) record: Record,
}

impl Account {
    pub(super) fn conclude(&mut self, outcome: Outcome) {
        self.record.conclude(outcome, &self.tally);
    }
}

/// Carries what has grown up to its end, and tells of it.
#[expect(clippy::manual_async_fn, reason = "that would hold what it takes twice")]
pub(super) fn carry_on(
    mut account: Account,
    (grown, places): (Box<Grown>, Box<Places>),
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        // Given back before it is told of.
        let _places = places;
        let Config { engine, limits, .. } = &*account.config;
        let route = account.record.entry.route.clone().unwrap_or_default();
        let metrics = &shared.observers.metrics;
        let carried = Box::pin(shared.ladder.carry_on(*engine, (*grown, &route), metrics));
        let outcome = tokio::select! {
            end = unless_idle(carried, limits.idle_timeout, &account.tally) => of(end),
            () = shared.cut.cancelled() => Outcome::Cut,
        };
        account.conclude(outcome);
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
