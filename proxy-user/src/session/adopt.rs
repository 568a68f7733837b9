//! Flows of the packet engine that a previous agent left in pins.
//!
//! The BPF programs carry them without an agent. This agent counts them and records how they end.

use std::sync::Arc;

use tokio_util::task::TaskTracker;
use tracing::info;

use crate::engine::FlowCounters;
use crate::engine::packet::AdoptedFlow;
use crate::session::context::Shared;
use crate::session::offloaded::{OffloadedConn, run_offloaded};
use crate::telemetry::{BackendEndpoint, Record};

/// The field `reason` in the access log of an adopted flow, whose hello this agent has not seen.
const ADOPTED_REASON: &str = "adopted";

/// Adopts all flows. Call it before the first connection: adoption reserves the source ports of the flows.
pub(crate) fn adopt_flows(shared: &Arc<Shared>, tasks: &TaskTracker) {
    let config = shared.config.load();
    let Some(engine) = shared.engine_selector.packet_engine(config.engine) else { return };
    let adopted_flows = engine.adopt();
    if !adopted_flows.is_empty() {
        info!(flows = adopted_flows.len(), "flows adopted");
    }
    for adopted in adopted_flows {
        tasks.spawn(run_offloaded(offloaded_conn(adopted, shared), Arc::clone(shared)));
    }
}

fn offloaded_conn(adopted: AdoptedFlow, shared: &Shared) -> OffloadedConn {
    let (client, listen_addr) = adopted.client();
    let mut record = Record::open(Arc::clone(&shared.telemetry), client, listen_addr);
    record.entry.timestamp = adopted.started_at() as f64;
    record.entry.route = adopted.route();
    record.entry.backend = Some(BackendEndpoint::Address(adopted.backend()));
    record.entry.reason = Some(ADOPTED_REASON);
    let counters = Arc::new(FlowCounters::default());
    let idle_timeout = shared.config.load().limits.idle_timeout;
    let flow = adopted.into_offloaded(Arc::clone(&counters));
    OffloadedConn { flow, _permits: None, counters, idle_timeout, record }
}
