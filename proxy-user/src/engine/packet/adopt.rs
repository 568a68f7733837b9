//! Flows that were there before the agent: another one has taken them over from their sockets, and has
//! died or been replaced since.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use snisplit_common::abi::packet::{FlowEntry, FlowState};

use super::clock::{now, silence};
use super::story::News;
use super::{Flight, Flow, Lease, Packet, Stage, Tally};
use crate::kernel::address::addresses;

/// A flow without an agent.
pub(crate) struct Orphan {
    flow: Flow,
    lease: Lease,
    splice: FlowEntry,
    route: Option<String>,
}

impl Packet {
    /// All that is left by a former agent. To be called before any port is leased.
    pub(crate) fn adopt(&self) -> Vec<Orphan> {
        let mut all = self.splicer.splices();
        // Those that run first, then those that have ended, the latest first (`Ports::rest`).
        all.sort_by_key(|(_, splice)| {
            (splice.state != FlowState::Offloaded, Reverse(last(splice)))
        });
        all.into_iter().filter_map(|(number, splice)| self.take_in(number, splice)).collect()
    }

    fn take_in(&self, number: u64, splice: FlowEntry) -> Option<Orphan> {
        if !splice.state.is_translated() {
            // Its sockets died with their agent.
            self.splicer.remove(number);
            return None;
        }
        let (backend, us) = addresses(&splice.backend_tuple);
        let story = self.keeper.follow(number);
        // It may have ended while nobody listened, also just now.
        let now = self.splicer.splice(number)?;
        if now.state != FlowState::Offloaded {
            self.keeper.forget(number);
            self.keeper.bury(number);
            self.ports.rest(backend, us.port(), seen(&now));
            return None;
        }
        let lease = self.ports.inherit(backend, us.port());
        self.keeper.tell(number, News::State(now.state));
        let flow = Flow { engine: self.clone(), number, story, stage: Stage::Flying };
        let route = self.splicer.route_name(splice.route_id);
        Some(Orphan { flow, lease, splice, route })
    }
}

/// When one of its peers was last heard, by the programs' clock.
fn last(splice: &FlowEntry) -> u64 {
    splice.client_state.last_seen_ns.max(splice.backend_state.last_seen_ns)
}

/// The same by ours.
fn seen(splice: &FlowEntry) -> Instant {
    let since = silence(last(splice), now());
    let at = Instant::now();
    at.checked_sub(since).unwrap_or(at)
}

impl Orphan {
    /// The client, and where it came in.
    pub(crate) fn client(&self) -> (SocketAddr, SocketAddr) {
        addresses(&self.splice.client_tuple)
    }

    /// The back end.
    pub(crate) fn backend(&self) -> SocketAddr {
        addresses(&self.splice.backend_tuple).0
    }

    /// Seconds since 1970 when it began.
    pub(crate) const fn opened(&self) -> u64 {
        self.splice.started_at
    }

    /// The first name of its route.
    pub(crate) fn route(&self) -> Option<String> {
        self.route.clone()
    }

    /// Goes on with it, on this account.
    pub(crate) fn flight(self, tally: Arc<Tally>) -> Box<Flight> {
        let Self { flow, lease, .. } = self;
        Box::new(Flight { flow, lease: Some(lease), tally })
    }
}
