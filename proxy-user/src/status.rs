//! `snisplit status`, `snisplit flows` and `snisplit top`: read from the agent's note and its pins, so they answer
//! while it is stopped or hangs.

use std::fmt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;
use snisplit_common::abi::packet::{FlowState, PacketCounter};
use snisplit_common::abi::{Direction, DirectionEntry, SockmapCounter};

use crate::kernel::pinned::{Packet, Pinned, Sockmap};
use crate::kernel::{self, pins};
use crate::presence::Presence;

mod flows;
mod top;

pub use flows::Flows;
pub use top::run as top;

/// What there is to say of an instance.
#[derive(Debug, Serialize)]
pub struct Status {
    instance: String,
    /// `None`: no agent of that name runs.
    agent: Option<Presence>,
    /// Of each engine that has something there.
    kernel: Vec<InKernel>,
}

/// What the kernel carries for an engine, and how its buffers or packets fared.
#[derive(Debug, Serialize)]
struct InKernel {
    engine: &'static str,
    flows: usize,
    /// Bytes of the flows that run.
    up: u64,
    down: u64,
    buffers: Vec<(&'static str, u64)>,
}

impl Status {
    /// Asks.
    pub fn of(instance: &str) -> Result<Self> {
        let agent = Presence::of(instance).context("the agent's note cannot be read")?;
        let Pinned { sockmap, packet } = read(instance)?.unwrap_or_default();
        let sockmap = sockmap.as_ref().map(InKernel::of_sockmap);
        let kernel = sockmap.into_iter().chain(packet.as_ref().map(InKernel::of_packet)).collect();
        Ok(Self { instance: instance.into(), agent, kernel })
    }

    /// Whether an agent of that name runs.
    pub const fn is_running(&self) -> bool {
        self.agent.is_some()
    }
}

impl InKernel {
    fn of_sockmap(pinned: &Sockmap) -> Self {
        let sum = |direction| {
            let flows = pinned.flows.values().filter(|flow| flow.direction == direction);
            flows.map(bytes).sum()
        };
        let words = SockmapCounter::ALL.iter().map(|(count, words)| (*words, pinned.count(*count)));
        Self {
            engine: "sockmap",
            flows: pinned.flows.values().filter(|flow| flow.direction == Direction::Up).count(),
            up: sum(Direction::Up),
            down: sum(Direction::Down),
            buffers: words.collect(),
        }
    }

    fn of_packet(pinned: &Packet) -> Self {
        let running = || pinned.flows.values().filter(|flow| flow.state == FlowState::Offloaded);
        let words = PacketCounter::ALL.iter().map(|(fate, words)| (*words, pinned.count(*fate)));
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
fn read(instance: &str) -> Result<Option<Pinned>> {
    let folder = pins(instance);
    match kernel::has_bpffs() && folder.exists() {
        true => Pinned::read(&folder).with_context(|| at(instance)).map(Some),
        false => Ok(None),
    }
}

fn at(instance: &str) -> String {
    Path::display(&pins(instance)).to_string()
}

const fn bytes(flow: &DirectionEntry) -> u64 {
    flow.redirected_bytes + flow.passed_bytes
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, agent, kernel } = self;
        match agent {
            Some(Presence { version, pid, started, engine, sockmap }) => {
                let age = UNIX_EPOCH + Duration::from_secs(*started);
                let age = Duration::from_secs(age.elapsed().unwrap_or_default().as_secs());
                let age = humantime::format_duration(age);
                writeln!(f, "instance  {instance}: snisplit {version}, process {pid}, for {age}")?;
                writeln!(f, "engine    {engine}")?;
                writeln!(f, "sockmap   {sockmap}")?;
            }
            None => writeln!(f, "instance  {instance}: no agent of that name runs here")?,
        }
        if kernel.is_empty() {
            return writeln!(f, "kernel    nothing in {}", at(instance));
        }
        kernel.iter().try_for_each(|one| one.fmt(f))
    }
}

impl fmt::Display for InKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, flows, up, down, buffers } = self;
        writeln!(f, "kernel    {engine}: {flows} flows, {up} bytes up, {down} bytes down")?;
        let title = if *engine == "packet" { "packets" } else { "buffers" };
        let told = buffers.iter().filter(|(_, number)| *number > 0);
        told.enumerate().try_for_each(|(index, (words, number))| {
            let title = if index == 0 { title } else { "" };
            writeln!(f, "{title:<9} {number} {words}")
        })
    }
}
