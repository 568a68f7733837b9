//! `snisplit status`: shows whether an agent runs, its engine, and the flows and counters of its BPF
//! programs.
//!
//! The subcommand reads the instance file and the pinned BPF maps. It therefore works while the agent
//! hangs, and after the agent has died.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;
use snisplit_common::abi::packet::{FlowState, PacketCounter};
use snisplit_common::abi::{Direction, sockmap::SockmapCounter};

use super::pinned::{pin_dir_text, read_pinned, total_bytes};
use crate::bpf::inspect::{PacketState, PinnedState, SockmapState};
use crate::instance::InstanceInfo;

/// State of an instance.
#[derive(Debug, Serialize)]
pub struct Status {
    instance: String,
    /// `None` if no agent of this name runs.
    agent: Option<InstanceInfo>,
    /// Engines that have pinned maps.
    engines: Vec<EngineStatus>,
}

/// Running flows and counters of one engine.
#[derive(Debug, Serialize)]
struct EngineStatus {
    engine: &'static str,
    flows: usize,
    /// Bytes that the running flows have delivered to back ends.
    bytes_up: u64,
    /// Bytes that the running flows have delivered to clients.
    bytes_down: u64,
    counters: Vec<CounterValue>,
}

/// Value of a counter of the BPF programs, summed over all CPUs.
#[derive(Debug, Serialize)]
struct CounterValue {
    id: &'static str,
    value: u64,
    description: &'static str,
}

impl Status {
    /// Reads the instance file and the pins.
    ///
    /// # Errors
    ///
    /// The instance file or a pin cannot be read.
    pub fn read(instance: &str) -> Result<Self> {
        let agent =
            InstanceInfo::read_running(instance).context("cannot read the instance file")?;
        let PinnedState { sockmap, packet } = read_pinned(instance)?.unwrap_or_default();
        let sockmap = sockmap.as_ref().map(EngineStatus::from_sockmap);
        let packet = packet.as_ref().map(EngineStatus::from_packet);
        Ok(Self {
            instance: instance.into(),
            agent,
            engines: sockmap.into_iter().chain(packet).collect(),
        })
    }

    /// Returns whether an agent of this name runs.
    pub const fn is_running(&self) -> bool {
        self.agent.is_some()
    }
}

impl EngineStatus {
    fn from_sockmap(pinned: &SockmapState) -> Self {
        let entries =
            |direction| pinned.flows.values().filter(move |entry| entry.direction == direction);
        let counters = SockmapCounter::ALL.map(|counter| CounterValue {
            id: counter.label(),
            value: pinned.counter(counter),
            description: counter.description(),
        });
        Self {
            engine: "sockmap",
            flows: entries(Direction::Up).count(),
            bytes_up: entries(Direction::Up).map(total_bytes).sum(),
            bytes_down: entries(Direction::Down).map(total_bytes).sum(),
            counters: counters.into(),
        }
    }

    fn from_packet(pinned: &PacketState) -> Self {
        let running = || pinned.flows.values().filter(|flow| flow.state == FlowState::Offloaded);
        let counters = PacketCounter::ALL.map(|counter| CounterValue {
            id: counter.label(),
            value: pinned.counter(counter),
            description: counter.description(),
        });
        Self {
            engine: "packet",
            flows: running().count(),
            bytes_up: running().map(|flow| flow.delivered_bytes().0).sum(),
            bytes_down: running().map(|flow| flow.delivered_bytes().1).sum(),
            counters: counters.into(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, agent, engines } = self;
        match agent {
            Some(InstanceInfo {
                version, pid, started_at, engine, sockmap_description, ..
            }) => {
                let started_at = UNIX_EPOCH + Duration::from_secs(*started_at);
                let age = Duration::from_secs(started_at.elapsed().unwrap_or_default().as_secs());
                let age = humantime::format_duration(age);
                writeln!(f, "instance  {instance}: snisplit {version}, process {pid}, for {age}")?;
                writeln!(f, "engine    {engine}")?;
                writeln!(f, "sockmap   {sockmap_description}")?;
            }
            None => writeln!(f, "instance  {instance}: no agent of that name runs here")?,
        }
        if engines.is_empty() {
            return writeln!(f, "kernel    nothing in {}", pin_dir_text(instance));
        }
        engines.iter().try_for_each(|engine| engine.fmt(f))
    }
}

impl fmt::Display for EngineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, flows, bytes_up, bytes_down, counters } = self;
        writeln!(
            f,
            "kernel    {engine}: {flows} flows, {bytes_up} bytes up, {bytes_down} bytes down"
        )?;
        let title = if *engine == "packet" { "packets" } else { "buffers" };
        let nonzero = counters.iter().filter(|counter| counter.value > 0);
        nonzero.enumerate().try_for_each(|(index, CounterValue { value, description, .. })| {
            let title = if index == 0 { title } else { "" };
            writeln!(f, "{title:<9} {value} {description}")
        })
    }
}
