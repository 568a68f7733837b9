//! Attachment of the XDP program, which runs in drivers, before the TC programs.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};
use snisplit_common::abi::packet::XDP_PROGRAM;
use tracing::warn;

use super::plan::{AttachPlan, AttachTarget};
use crate::bpf::error::BpfError;
use crate::bpf::load_retry;
use crate::bpf::packet::pins::xdp_pin;

/// Loads the XDP program, attaches it where the plan wants it, and returns the indices of the interfaces
/// that accept it.
///
/// A driver does not accept it if it has another program, or if the MTU is too large. The TC programs then
/// forward the packets.
///
/// # Errors
/// Fails if the kernel rejects the program.
pub(in crate::bpf::packet) fn attach(
    ebpf: &mut Ebpf,
    plan: &AttachPlan,
    pins: Option<&Path>,
) -> Result<Vec<u32>, BpfError> {
    let mut attached = Vec::new();
    let mut targets = plan.xdp_targets().peekable();
    if targets.peek().is_none() {
        return Ok(attached);
    }
    let missing = || BpfError::MissingFromObject(XDP_PROGRAM);
    let program: &mut Xdp = ebpf.program_mut(XDP_PROGRAM).ok_or_else(missing)?.try_into()?;
    load_retry::load_program(|| program.load())?;
    for target in targets {
        match attach_one(program, target, pins) {
            Ok(()) => attached.push(target.ifindex),
            Err(error) => {
                let error = anyhow::Error::from(error);
                warn!(
                    interface = target.name,
                    "packet.xdp: not supported by this driver: {error:#}"
                );
            }
        }
    }
    Ok(attached)
}

/// Attaches the program to one interface. With `dir`, the attachment outlives the agent.
fn attach_one(
    program: &mut Xdp,
    target: &AttachTarget,
    dir: Option<&Path>,
) -> Result<(), BpfError> {
    let pin = dir.map(|folder| xdp_pin(folder, target.ifindex));
    if let Some(pin) = pin.as_ref().filter(|pin| pin.exists()) {
        if replace_program(program, pin).is_ok() {
            return Ok(());
        }
        // A link that cannot be updated belongs to an interface that does not exist.
        fs::remove_file(pin)?;
    }
    let link_id = program.attach_to_if_index(target.ifindex, XdpMode::Driver)?;
    if let Some(pin) = pin {
        FdLink::try_from(program.take_link(link_id)?)?.pin(pin)?;
    }
    Ok(())
}

fn replace_program(program: &mut Xdp, pin: &Path) -> Result<(), BpfError> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    let attached: Result<_, ProgramError> = program.attach_to_link(XdpLink::try_from(old)?);
    attached?;
    Ok(())
}
