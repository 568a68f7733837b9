//! The flows that the kernel carries, one by one.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;
use snisplit_common::abi::packet::{FlowEntry, PeerState};
use snisplit_common::abi::{Direction, DirectionEntry, DirectionState};

use super::{pin_dir_text, read_pinned, total_bytes};
use crate::bpf::address::{peer_and_local, socket_addr};
use crate::bpf::inspect::{PacketState, SockmapState};

/// A flow that the kernel carries.
#[derive(Debug, Serialize)]
pub(super) struct FlowRow {
    pub(super) engine: &'static str,
    pub(super) client: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) route: String,
    /// Bytes that the kernel carried.
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) up_state: &'static str,
    pub(super) down_state: &'static str,
    /// Seconds.
    pub(super) age: u64,
}

/// All flows of an instance that the kernel carries, oldest first.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct FlowList(pub(super) Vec<FlowRow>);

impl FlowList {
    /// Reads the flows from the pins of an instance.
    ///
    /// # Errors
    ///
    /// Nothing is pinned, or a pin cannot be read.
    pub fn read(instance: &str) -> Result<Self> {
        let pinned = read_pinned(instance)?.with_context(|| {
            format!(
                "{}: nothing is pinned there; `snisplit status` says why",
                pin_dir_text(instance)
            )
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut all = Vec::new();
        if let Some(sockmap) = &pinned.sockmap {
            let up_entries = sockmap.flows.values().filter(|flow| flow.direction == Direction::Up);
            all.extend(up_entries.map(|up| FlowRow::from_sockmap(sockmap, up, now)));
        }
        if let Some(packet) = &pinned.packet {
            all.extend(packet.flows.values().map(|flow| FlowRow::from_packet(packet, flow, now)));
        }
        all.sort_by_key(|flow| std::cmp::Reverse(flow.age));
        Ok(Self(all))
    }
}

impl FlowRow {
    fn from_sockmap(pinned: &SockmapState, up: &DirectionEntry, now: u64) -> Self {
        let down = pinned.flows.get(&up.egress_cookie);
        Self {
            engine: "sockmap",
            client: socket_addr(up.client_address, up.client_port),
            backend: socket_addr(up.backend_address, up.backend_port),
            route: pinned.route(up).into(),
            up: total_bytes(up),
            down: down.map_or(0, total_bytes),
            up_state: state_name(up.state),
            down_state: down.map_or("closed", |down| state_name(down.state)),
            age: now.saturating_sub(up.started_at),
        }
    }

    fn from_packet(pinned: &PacketState, flow: &FlowEntry, now: u64) -> Self {
        let (up, down) = flow.delivered_bytes();
        let state =
            |peer: &PeerState| if peer.has_fin == 0 { flow.state.label() } else { "half_closed" };
        Self {
            engine: "packet",
            client: peer_and_local(&flow.client_tuple).0,
            backend: peer_and_local(&flow.backend_tuple).0,
            route: pinned.route_name(flow).into(),
            up,
            down,
            up_state: state(&flow.client_state),
            down_state: state(&flow.backend_state),
            age: now.saturating_sub(flow.started_at),
        }
    }
}

const fn state_name(state: DirectionState) -> &'static str {
    match state {
        DirectionState::Pending => "pending",
        DirectionState::Redirecting => "redirecting",
        DirectionState::Detaching => "detaching",
        DirectionState::Overflowing => "overflowing",
        DirectionState::Poisoned => "poisoned",
    }
}

impl fmt::Display for FlowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for flow in &self.0 {
            let FlowRow { engine, client, backend, route, up, down, .. } = flow;
            let age = humantime::format_duration(Duration::from_secs(flow.age));
            let (up_state, down_state) = (flow.up_state, flow.down_state);
            writeln!(
                f,
                "{client} -> {backend}  {route}  {engine}  up {up} ({up_state})  down {down} \
                 ({down_state})  {age}"
            )?;
        }
        Ok(())
    }
}
