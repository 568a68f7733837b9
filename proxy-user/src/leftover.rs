//! What an agent that no longer runs has left in the kernel.

use std::fs::{self, File};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use snisplit_common::abi::packet::SpliceState;

use crate::engine::packet::reset;
use crate::kernel::pinned::{Pinned, forget_flows};
use crate::kernel::pins;

/// Ends the flows of an instance and removes its pins; what to say of it.
pub fn drop(instance: &str) -> Result<String> {
    let folder = pins(instance);
    let place = folder.display();
    let lock = File::open(&folder).with_context(|| format!("{place}: nothing is left there"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{place}: the agent \"{instance}\" runs; stop it first");
    }
    // Those of another version are not understood; without its programs the kernel resets them as
    // soon as one of their peers says something.
    let packet = Pinned::read(&folder).ok().and_then(|pinned| pinned.packet);
    if packet.is_some() {
        // The programs go later than their pins, and would not let the resets out.
        forget_flows(&folder)?;
    }
    for entry in fs::read_dir(&folder)?.flatten() {
        fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
    }
    fs::remove_dir(&folder)?;
    let Some(packet) = packet else {
        return Ok(format!("{place} is gone, and what flows it had with it"));
    };
    let running = packet.flows.values().filter(|flow| flow.state == SpliceState::Spliced);
    let ended = running.inspect(|flow| reset(flow)).count();
    Ok(format!("{ended} flows ended; {place} is gone"))
}
