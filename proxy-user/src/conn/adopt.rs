//! Flows of a former agent, which need none to go on: this one counts them and tells how they end.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tracing::info;

use super::Shared;
use super::aloft::{Aloft, watch};
use crate::engine::Tally;
use crate::engine::packet::Orphan;
use crate::observe::{Peer, Record};

/// Takes all of them in. Before the first connection: its port must not be one of theirs.
pub(crate) fn adopt(shared: &Arc<Shared>, tasks: &TaskTracker) {
    let config = shared.config.load();
    let Some(engine) = shared.ladder.packet(config.engine) else { return };
    let orphans = engine.adopt();
    if !orphans.is_empty() {
        info!(flows = orphans.len(), "flows of a former agent go on");
    }
    for orphan in orphans {
        tasks.spawn(watch(taken_over(orphan, shared), Arc::clone(shared)));
    }
}

fn taken_over(orphan: Orphan, shared: &Shared) -> Aloft {
    let (client, at) = orphan.client();
    let mut record = Record::open(Arc::clone(&shared.observers), client, at);
    record.entry.time = orphan.opened() as f64;
    record.entry.route = orphan.route();
    record.entry.backend = Some(Peer::Address(orphan.backend()));
    record.entry.reason = Some("adopted");
    let tally = Arc::new(Tally::default());
    let limit = shared.config.load().limits.idle_timeout;
    let flight = orphan.flight(Arc::clone(&tally));
    Aloft { flight, _places: None, tally, limit, record }
}
