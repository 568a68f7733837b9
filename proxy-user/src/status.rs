//! `snisplit status`, `snisplit flows` and `snisplit top`: read from the agent's note and its pins, so they answer
//! while it is stopped or hangs.

use std::fmt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;
use snisplit_common::abi::packet::{FlowState, PacketCounter};
use snisplit_common::abi::{Direction, DirectionEntry, SockmapCounter};

use crate::bpf::inspect::{PacketState, PinnedState, SockmapState};
use crate::bpf::{self, pin_dir};
use crate::instance::InstanceInfo;

mod flows;
mod top;

pub use flows::FlowList;
pub use top::run as top;

/// What there is to say of an instance.
#[derive(Debug, Serialize)]
pub struct Status {
    instance: String,
    /// `None`: no agent of that name runs.
    agent: Option<InstanceInfo>,
    /// Of each engine that has something there.
    kernel: Vec<EngineStatus>,
}

/// What the kernel carries for an engine, and how its buffers or packets fared.
#[derive(Debug, Serialize)]
struct EngineStatus {
    engine: &'static str,
    flows: usize,
    /// Bytes of the flows that run.
    up: u64,
    down: u64,
    buffers: Vec<(&'static str, u64)>,
}

impl Status {
    /// Reads the instance file and the pins.
    ///
    /// # Errors
    ///
    /// The instance file or a pin cannot be read.
    pub fn read(instance: &str) -> Result<Self> {
        let agent =
            InstanceInfo::read_running(instance).context("the agent's note cannot be read")?;
        let PinnedState { sockmap, packet } = read_pinned(instance)?.unwrap_or_default();
        let sockmap = sockmap.as_ref().map(EngineStatus::from_sockmap);
        let kernel =
            sockmap.into_iter().chain(packet.as_ref().map(EngineStatus::from_packet)).collect();
        Ok(Self { instance: instance.into(), agent, kernel })
    }

    /// Whether an agent of that name runs.
    pub const fn is_running(&self) -> bool {
        self.agent.is_some()
    }
}

impl EngineStatus {
    fn from_sockmap(pinned: &SockmapState) -> Self {
        let sum = |direction| {
            let flows = pinned.flows.values().filter(|flow| flow.direction == direction);
            flows.map(total_bytes).sum()
        };
        let words =
            SockmapCounter::ALL.iter().map(|(count, words)| (*words, pinned.counter(*count)));
        Self {
            engine: "sockmap",
            flows: pinned.flows.values().filter(|flow| flow.direction == Direction::Up).count(),
            up: sum(Direction::Up),
            down: sum(Direction::Down),
            buffers: words.collect(),
        }
    }

    fn from_packet(pinned: &PacketState) -> Self {
        let running = || pinned.flows.values().filter(|flow| flow.state == FlowState::Offloaded);
        let words = PacketCounter::ALL.iter().map(|(fate, words)| (*words, pinned.counter(*fate)));
        Self {
            engine: "packet",
            flows: running().count(),
            up: running().map(|flow| flow.delivered_bytes().0).sum(),
            down: running().map(|flow| flow.delivered_bytes().1).sum(),
            buffers: words.collect(),
        }
    }
}

/// `None` if nothing is pinned.
fn read_pinned(instance: &str) -> Result<Option<PinnedState>> {
    let folder = pin_dir(instance);
    match bpf::is_bpffs_mounted() && folder.exists() {
        true => PinnedState::read(&folder).with_context(|| pin_dir_text(instance)).map(Some),
        false => Ok(None),
    }
}

fn pin_dir_text(instance: &str) -> String {
    Path::display(&pin_dir(instance)).to_string()
}

const fn total_bytes(flow: &DirectionEntry) -> u64 {
    flow.redirected_bytes + flow.passed_bytes
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, agent, kernel } = self;
        match agent {
            Some(InstanceInfo { version, pid, started, engine, sockmap }) => {
                let started_at = UNIX_EPOCH + Duration::from_secs(*started);
                let age = Duration::from_secs(started_at.elapsed().unwrap_or_default().as_secs());
                let age = humantime::format_duration(age);
                writeln!(f, "instance  {instance}: snisplit {version}, process {pid}, for {age}")?;
                writeln!(f, "engine    {engine}")?;
                writeln!(f, "sockmap   {sockmap}")?;
            }
            None => writeln!(f, "instance  {instance}: no agent of that name runs here")?,
        }
        if kernel.is_empty() {
            return writeln!(f, "kernel    nothing in {}", pin_dir_text(instance));
        }
        kernel.iter().try_for_each(|engine| engine.fmt(f))
    }
}

impl fmt::Display for EngineStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, flows, up, down, buffers } = self;
        writeln!(f, "kernel    {engine}: {flows} flows, {up} bytes up, {down} bytes down")?;
        let title = if *engine == "packet" { "packets" } else { "buffers" };
        let nonzero = buffers.iter().filter(|(_, number)| *number > 0);
        nonzero.enumerate().try_for_each(|(index, (words, number))| {
            let title = if index == 0 { title } else { "" };
            writeln!(f, "{title:<9} {number} {words}")
        })
    }
}
