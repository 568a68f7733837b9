//! `snisplit flows`: lists the offloaded flows of an instance, and resets, migrates or purges them.

use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use snisplit_common::abi::packet::{FlowEntry, FlowState, PeerState};
use snisplit_common::abi::sockmap::{DirectionEntry, DirectionState};
use snisplit_common::abi::{Direction, PACKET_ABI_VERSION};

use super::counted;
use super::pinned::{pin_dir_text, read_pinned, total_bytes};
use crate::bpf::address::{peer_and_local, socket_addr};
use crate::bpf::inspect::{PacketState, PinnedState, SockmapState, remove_tuples, request_resets};
use crate::bpf::packet::{detach_all, migrate as migrate_pins};
use crate::bpf::pin_dir;
use crate::engine::packet::send_resets;

/// An offloaded flow.
#[derive(Debug, Serialize)]
pub(super) struct FlowRow {
    pub(super) engine: &'static str,
    pub(super) client: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) route: String,
    /// Bytes delivered to the back end while offloaded.
    pub(super) bytes_up: u64,
    /// Bytes delivered to the client while offloaded.
    pub(super) bytes_down: u64,
    pub(super) state_up: &'static str,
    pub(super) state_down: &'static str,
    /// Seconds since the flow was offloaded.
    pub(super) age_seconds: u64,
}

/// All offloaded flows of an instance, oldest first.
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
                "{}: nothing is pinned there; `snisplit status` shows the engine of the agent",
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
        all.sort_by_key(|flow| std::cmp::Reverse(flow.age_seconds));
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
            bytes_up: total_bytes(up),
            bytes_down: down.map_or(0, total_bytes),
            state_up: state_label(up.state),
            state_down: down.map_or("closed", |down| state_label(down.state)),
            age_seconds: now.saturating_sub(up.started_at),
        }
    }

    fn from_packet(pinned: &PacketState, flow: &FlowEntry, now: u64) -> Self {
        let (bytes_up, bytes_down) = flow.delivered_bytes();
        let state =
            |peer: &PeerState| if peer.has_fin == 0 { flow.state.label() } else { "half_closed" };
        Self {
            engine: "packet",
            client: peer_and_local(&flow.client_tuple).0,
            backend: peer_and_local(&flow.backend_tuple).0,
            route: pinned.route_name(flow).into(),
            bytes_up,
            bytes_down,
            state_up: state(&flow.client_state),
            state_down: state(&flow.backend_state),
            age_seconds: now.saturating_sub(flow.started_at),
        }
    }
}

const fn state_label(state: DirectionState) -> &'static str {
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
            let FlowRow { engine, client, backend, route, bytes_up, bytes_down, .. } = flow;
            let age = humantime::format_duration(Duration::from_secs(flow.age_seconds));
            let (state_up, state_down) = (flow.state_up, flow.state_down);
            writeln!(
                f,
                "{client} -> {backend}  {route}  {engine}  up {bytes_up} ({state_up})  down \
                 {bytes_down} ({state_down})  {age}"
            )?;
        }
        Ok(())
    }
}

/// What a verb did to flows. `message` is the line that the verb prints.
#[derive(Debug, Serialize)]
pub struct FlowsChange {
    /// Flows that the verb reset, requested to reset, or converted. `None` if they could not be counted.
    flows: Option<usize>,
    message: String,
}

impl fmt::Display for FlowsChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)
    }
}

/// Locks the pins of an instance, so that no agent of its name can start while the file is open.
///
/// # Errors
///
/// Nothing is pinned, or an agent of that name runs.
fn lock_stopped_instance(instance: &str) -> Result<(PathBuf, File)> {
    let dir = pin_dir(instance);
    let place = dir.display();
    let lock = File::open(&dir).with_context(|| format!("{place}: nothing is pinned there"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{place}: the agent \"{instance}\" runs; stop it first");
    }
    Ok((dir, lock))
}

/// Converts the pins that an older version left.
///
/// # Errors
///
/// An agent of that name runs, the version is unknown, or a pin cannot be converted.
pub fn migrate(instance: &str) -> Result<FlowsChange> {
    let (dir, _lock) = lock_stopped_instance(instance)?;
    let from_version = migrate_pins(&dir)?;
    let place = dir.display();
    let flows = PinnedState::read(&dir)?.packet.map_or(0, |packet| packet.flows.len());
    let message = match from_version {
        PACKET_ABI_VERSION => {
            format!("{place}: nothing to convert, the packet ABI version is {from_version} already")
        }
        _ => format!(
            "{place}: {} of packet ABI version {from_version} converted; the next agent adopts them",
            counted(flows, "flow")
        ),
    };
    Ok(FlowsChange { flows: Some(flows), message })
}

/// Resets the flows of an instance and removes its pins.
///
/// # Errors
///
/// An agent of that name runs, or a pin cannot be read or removed.
pub fn purge(instance: &str) -> Result<FlowsChange> {
    let (dir, _lock) = lock_stopped_instance(instance)?;
    let place = dir.display();
    // Flow entries of another ABI version cannot be read. Once the programs are detached, the kernel
    // resets such a flow as soon as one of its peers sends a packet.
    let packet = PinnedState::read(&dir).ok().and_then(|pinned| pinned.packet);
    if packet.is_some() {
        // The programs outlive their pins for a moment, and would drop the resets sent below.
        remove_tuples(&dir)?;
    }
    detach_all(&dir);
    for entry in fs::read_dir(&dir)?.flatten() {
        fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
    }
    fs::remove_dir(&dir)?;
    let Some(packet) = packet else {
        let message = format!("{place} removed, with all flows that were pinned there");
        return Ok(FlowsChange { flows: None, message });
    };
    let running = packet.flows.values().filter(|flow| flow.state == FlowState::Offloaded);
    let reset = running.inspect(|flow| send_resets(flow)).count();
    let message = format!("{} reset; {place} removed", counted(reset, "flow"));
    Ok(FlowsChange { flows: Some(reset), message })
}

/// Asks the agent to reset the flows of a client, by address or by address and port.
///
/// # Errors
///
/// The address is malformed, no flow has it, or the pins cannot be written.
pub fn request_reset(instance: &str, client: &str) -> Result<FlowsChange> {
    let is_selected: Box<dyn Fn(SocketAddr) -> bool> =
        match (client.parse::<SocketAddr>(), client.parse::<IpAddr>()) {
            (Ok(address), _) => Box::new(move |other| other == address),
            (_, Ok(ip)) => Box::new(move |other| other.ip() == ip),
            _ => bail!("\"{client}\" is neither ADDRESS:PORT nor ADDRESS"),
        };
    let dir = pin_dir(instance);
    let context = || format!("{}: no flows of the packet engine", dir.display());
    let packet = PinnedState::read(&dir)?.packet.with_context(context)?;
    let running = packet.flows.iter().filter(|(_, flow)| flow.state == FlowState::Offloaded);
    let selected = running.filter(|(_, flow)| is_selected(peer_and_local(&flow.client_tuple).0));
    let flow_ids: Vec<u64> = selected.map(|(flow_id, _)| *flow_id).collect();
    request_resets(&dir, &flow_ids)?;
    match flow_ids.len() {
        0 => bail!("no flow of {client} is offloaded; `snisplit flows` lists those that are"),
        flows => {
            let message = format!("{} will be reset", counted(flows, "flow"));
            Ok(FlowsChange { flows: Some(flows), message })
        }
    }
}
