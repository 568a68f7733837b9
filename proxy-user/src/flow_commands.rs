//! Flows in the kernel that an agent which no longer runs has left there, and single ones of one that does:
//! they are to end, or to go on with another version.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use snisplit_common::abi::packet::FlowState;

use crate::bpf::address::peer_and_local;
use crate::bpf::inspect::{PinnedState, remove_tuples, request_resets};
use crate::bpf::packet::{detach_all, migrate as migrate_pins};
use crate::bpf::pin_dir;
use crate::engine::packet::send_resets;

/// The pins of an instance whose agent does not run, nor will while the file is open.
fn lock_stopped_instance(instance: &str) -> Result<(PathBuf, File)> {
    let folder = pin_dir(instance);
    let place = folder.display();
    let lock = File::open(&folder).with_context(|| format!("{place}: nothing is left there"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("{place}: the agent \"{instance}\" runs; stop it first");
    }
    Ok((folder, lock))
}

/// Converts the pins that an older version left. Returns the line to print.
///
/// # Errors
///
/// An agent of that name runs, the version is unknown, or a pin cannot be converted.
pub fn migrate(instance: &str) -> Result<String> {
    let (folder, _lock) = lock_stopped_instance(instance)?;
    let from_version = migrate_pins(&folder)?;
    let place = folder.display();
    let flows = PinnedState::read(&folder)?.packet.map_or(0, |packet| packet.flows.len());
    Ok(format!(
        "{place}: {flows} flows, of packet ABI version {from_version}, can go on with this snisplit"
    ))
}

/// Resets the flows of an instance and removes its pins. Returns the line to print.
///
/// # Errors
///
/// An agent of that name runs, or a pin cannot be read or removed.
pub fn purge(instance: &str) -> Result<String> {
    let (folder, _lock) = lock_stopped_instance(instance)?;
    let place = folder.display();
    // Those of another version are not understood; without its programs the kernel resets them as
    // soon as one of their peers says something.
    let packet = PinnedState::read(&folder).ok().and_then(|pinned| pinned.packet);
    if packet.is_some() {
        // The programs go later than their pins, and would not let the resets out.
        remove_tuples(&folder)?;
    }
    detach_all(&folder);
    for entry in fs::read_dir(&folder)?.flatten() {
        fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
    }
    fs::remove_dir(&folder)?;
    let Some(packet) = packet else {
        return Ok(format!("{place} is gone, and what flows it had with it"));
    };
    let running = packet.flows.values().filter(|flow| flow.state == FlowState::Offloaded);
    let ended = running.inspect(|flow| send_resets(flow)).count();
    Ok(format!("{ended} flows ended; {place} is gone"))
}

/// Asks the agent to reset the flows of a client, by address or by address and port. Returns the line
/// to print.
///
/// # Errors
///
/// The address is malformed, no flow has it, or the pins cannot be written.
pub fn request_reset(instance: &str, client: &str) -> Result<String> {
    let is_selected: Box<dyn Fn(SocketAddr) -> bool> =
        match (client.parse::<SocketAddr>(), client.parse::<IpAddr>()) {
            (Ok(address), _) => Box::new(move |other| other == address),
            (_, Ok(ip)) => Box::new(move |other| other.ip() == ip),
            _ => bail!("\"{client}\" is no ADDRESS:PORT and no ADDRESS"),
        };
    let folder = pin_dir(instance);
    let context = || format!("{}: no flows of the packet engine", folder.display());
    let packet = PinnedState::read(&folder)?.packet.with_context(context)?;
    let running = packet.flows.iter().filter(|(_, flow)| flow.state == FlowState::Offloaded);
    let selected = running.filter(|(_, flow)| is_selected(peer_and_local(&flow.client_tuple).0));
    let flow_ids: Vec<u64> = selected.map(|(number, _)| *number).collect();
    request_resets(&folder, &flow_ids)?;
    match flow_ids.len() {
        0 => bail!("no flow of {client} is in the kernel; `snisplit flows` lists them"),
        flows => Ok(format!("{flows} flows will be cut")),
    }
}
