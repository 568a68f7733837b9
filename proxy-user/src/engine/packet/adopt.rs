//! Flows that were there before the agent: another one has taken them over from their sockets, and has
//! died or been replaced since.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use snisplit_common::abi::packet::{FlowEntry, FlowState};

use super::PacketEngine;
use super::clock::{idle_time, ktime_now};
use super::flow::{FlowGuard, OffloadedFlow, OnDrop};
use super::flow_watch::FlowUpdate;
use super::ports::PortLease;
use crate::bpf::address::peer_and_local;
use crate::engine::FlowCounters;

/// A flow without an agent.
pub(crate) struct AdoptedFlow {
    guard: FlowGuard,
    lease: PortLease,
    entry: FlowEntry,
    route: Option<String>,
}

impl PacketEngine {
    /// All that is left by a former agent. To be called before any port is leased.
    pub(crate) fn adopt(&self) -> Vec<AdoptedFlow> {
        let mut all = self.programs.flow_entries();
        // Those that run first, then those that have ended, the latest first (`Ports::rest`).
        all.sort_by_key(|(_, entry)| {
            (entry.state != FlowState::Offloaded, Reverse(last_packet_ns(entry)))
        });
        all.into_iter().filter_map(|(flow_id, entry)| self.adopt_one(flow_id, entry)).collect()
    }

    fn adopt_one(&self, flow_id: u64, entry: FlowEntry) -> Option<AdoptedFlow> {
        if !entry.state.is_translated() {
            // Its sockets died with their agent.
            self.programs.remove_flow(flow_id);
            return None;
        }
        let (backend, local) = peer_and_local(&entry.backend_tuple);
        let mut guard = FlowGuard::new(&self.programs, &self.monitor, flow_id, OnDrop::ResetPeers);
        // It may have ended while nobody listened, also just now.
        let current = self.programs.flow_entry(flow_id)?;
        if current.state != FlowState::Offloaded {
            self.ports.quarantine(backend, local.port(), last_packet_at(&current));
            guard.on_drop = OnDrop::TimeWait(None);
            return None;
        }
        let lease = self.ports.reserve_adopted(backend, local.port());
        self.monitor.publish(flow_id, FlowUpdate::State(current.state));
        let route = self.programs.route_name(entry.route_id);
        Some(AdoptedFlow { guard, lease, entry, route })
    }
}

/// When one of its peers was last heard, by the programs' clock.
fn last_packet_ns(entry: &FlowEntry) -> u64 {
    entry.client_state.last_seen_ns.max(entry.backend_state.last_seen_ns)
}

/// The same by ours.
fn last_packet_at(entry: &FlowEntry) -> Instant {
    let idle = idle_time(last_packet_ns(entry), ktime_now());
    let now_instant = Instant::now();
    now_instant.checked_sub(idle).unwrap_or(now_instant)
}

impl AdoptedFlow {
    /// The client, and where it came in.
    pub(crate) fn client(&self) -> (SocketAddr, SocketAddr) {
        peer_and_local(&self.entry.client_tuple)
    }

    /// The back end.
    pub(crate) fn backend(&self) -> SocketAddr {
        peer_and_local(&self.entry.backend_tuple).0
    }

    /// Seconds since 1970 when it began.
    pub(crate) const fn started_at(&self) -> u64 {
        self.entry.started_at
    }

    /// The first name of its route.
    pub(crate) fn route(&self) -> Option<String> {
        self.route.clone()
    }

    /// Goes on with it, on this account.
    pub(crate) fn into_offloaded(self, counters: Arc<FlowCounters>) -> Box<OffloadedFlow> {
        let Self { guard, lease, .. } = self;
        Box::new(OffloadedFlow { guard, lease: Some(lease), counters })
    }
}
