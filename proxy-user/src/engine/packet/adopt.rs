//! Adoption of offloaded flows that a previous agent left in the pinned maps.

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

/// An offloaded flow that a previous agent left in the pinned maps.
pub(crate) struct AdoptedFlow {
    guard: FlowGuard,
    lease: PortLease,
    entry: FlowEntry,
    route: Option<String>,
}

impl PacketEngine {
    /// Adopts all flows in the maps. Must run before the first port is leased.
    pub(crate) fn adopt(&self) -> Vec<AdoptedFlow> {
        let mut all = self.programs.flow_entries();
        // First the running flows, then the ended ones, latest first (`PortAllocator::quarantine`).
        all.sort_by_key(|(_, entry)| {
            (entry.state != FlowState::Offloaded, Reverse(last_packet_ns(entry)))
        });
        all.into_iter().filter_map(|(flow_id, entry)| self.adopt_one(flow_id, entry)).collect()
    }

    fn adopt_one(&self, flow_id: u64, entry: FlowEntry) -> Option<AdoptedFlow> {
        if !entry.state.is_translated() {
            // The kernel closed its sockets when their agent ended.
            self.programs.remove_flow(flow_id);
            return None;
        }
        let (backend, local) = peer_and_local(&entry.backend_tuple);
        let mut guard = FlowGuard::new(&self.programs, &self.monitor, flow_id, OnDrop::ResetPeers);
        // The flow may have ended without an event, before the monitor watched it.
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

/// Time of the last packet from either peer, in ns of the programs' clock.
fn last_packet_ns(entry: &FlowEntry) -> u64 {
    entry.client_state.last_seen_ns.max(entry.backend_state.last_seen_ns)
}

/// Time of the last packet from either peer, by the agent's clock.
fn last_packet_at(entry: &FlowEntry) -> Instant {
    let idle = idle_time(last_packet_ns(entry), ktime_now());
    let now_instant = Instant::now();
    now_instant.checked_sub(idle).unwrap_or(now_instant)
}

impl AdoptedFlow {
    /// Addresses of the client and of the listener.
    pub(crate) fn client(&self) -> (SocketAddr, SocketAddr) {
        peer_and_local(&self.entry.client_tuple)
    }

    /// Address of the back end.
    pub(crate) fn backend(&self) -> SocketAddr {
        peer_and_local(&self.entry.backend_tuple).0
    }

    /// Start of the flow, in seconds since 1970.
    pub(crate) const fn started_at(&self) -> u64 {
        self.entry.started_at
    }

    /// First name of the flow's route; `None` if the maps do not have it.
    pub(crate) fn route(&self) -> Option<String> {
        self.route.clone()
    }

    /// Makes an offloaded flow of it, which updates these counters.
    pub(crate) fn into_offloaded(self, counters: Arc<FlowCounters>) -> Box<OffloadedFlow> {
        let Self { guard, lease, .. } = self;
        Box::new(OffloadedFlow { guard, lease: Some(lease), counters })
    }
}
