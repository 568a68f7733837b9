//! Flows of a former agent, which need none to go on: this one counts them and tells how they end.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tracing::info;

use super::forward::unless_idle;
use super::{Scene, Shared};
use crate::engine::Tally;
use crate::engine::packet::Orphan;
use crate::observe::{Outcome, Peer, Record};

/// Takes all of them in. Before the first connection: its port must not be one of theirs.
pub(crate) fn adopt(shared: &Arc<Shared>, tasks: &TaskTracker) {
    let config = shared.config.load();
    let Some(engine) = shared.ladder.packet(config.engine) else { return };
    let orphans = engine.adopt();
    if !orphans.is_empty() {
        info!(flows = orphans.len(), "flows of a former agent go on");
    }
    for orphan in orphans {
        tasks.spawn(follow(orphan, Arc::clone(shared)));
    }
}

async fn follow(orphan: Orphan, shared: Arc<Shared>) {
    let (client, at) = orphan.client();
    let mut record = Record::open(Arc::clone(&shared.observers), client, at);
    record.entry.time = orphan.opened() as f64;
    record.entry.route = orphan.route();
    record.entry.backend = Some(Peer::Address(orphan.backend()));
    record.entry.reason = Some("adopted");
    let tally = Arc::new(Tally::default());
    let config = shared.config.load_full();
    let scene = Scene { config: &config, shared: &shared, tally: &tally };
    record.outcome = tokio::select! {
        outcome = unless_idle(Box::pin(orphan.carry(&tally)), scene) => outcome,
        () = shared.cut.cancelled() => Outcome::Cut,
    };
    scene.conclude(&mut record);
}
