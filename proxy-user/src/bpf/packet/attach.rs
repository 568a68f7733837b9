//! Attachment of the packet engine's programs to interfaces.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use snisplit_common::abi::packet::{
    CONTROL_PROGRAM, EGRESS_PROGRAM, INGRESS_PROGRAM, XMIT_PEER, XMIT_QDISC,
};

use super::pins::xdp_pin;
use crate::bpf::error::BpfError;
use crate::bpf::{inspect, load_retry};

mod plan;
mod tc;
mod xdp;

pub(crate) use plan::{AttachPlan, AttachTarget, Hook};
pub(super) use xdp::attach as load_and_attach_xdp;

/// Loads the TC programs and attaches them to all interfaces of a plan.
///
/// The egress program comes first, because it suppresses what the sockets of a flow send during a takeover.
/// The ingress program starts takeovers.
///
/// # Errors
/// Fails if the kernel rejects a program, or if an interface does not accept it.
pub(super) fn load_and_attach_tc(
    ebpf: &mut Ebpf,
    plan: &AttachPlan,
    pins: Option<&Path>,
) -> Result<(), BpfError> {
    let control = tc_program(ebpf, CONTROL_PROGRAM)?;
    load_retry::load_program(|| control.load())?;
    for (name, attach_type) in
        [(EGRESS_PROGRAM, TcAttachType::Egress), (INGRESS_PROGRAM, TcAttachType::Ingress)]
    {
        let program = tc_program(ebpf, name)?;
        load_retry::load_program(|| program.load())?;
        for target in plan.targets() {
            tc::attach(program, target, plan.hook(), attach_type, pins)?;
        }
    }
    Ok(())
}

/// Adds the interfaces of a plan to the map of interfaces, and returns those that the map had before.
///
/// Call this before attaching. The next agent then finds the attachments of a start that failed.
///
/// # Errors
/// Fails if the map is full.
pub(super) fn record_interfaces(
    plan: &AttachPlan,
    interfaces: &mut HashMap<MapData, u32, u32>,
) -> Result<Vec<u32>, BpfError> {
    let previous = interfaces.keys().flatten().collect();
    for target in plan.targets() {
        let xmit = if target.peer_in_other_netns { XMIT_PEER } else { XMIT_QDISC };
        interfaces.insert(target.ifindex, xmit, 0)?;
    }
    Ok(previous)
}

/// Detaches the programs wherever they were before and the plan does not attach them.
pub(super) fn detach_unlisted(
    plan: &AttachPlan,
    previous: &[u32],
    pins: Option<&Path>,
    interfaces: &mut HashMap<MapData, u32, u32>,
) {
    for (ifindex, remainder) in plan.remainders(previous) {
        if let Some(dir) = pins {
            tc::detach(dir, ifindex, remainder.hook);
            if !remainder.xdp {
                let _not_attached = fs::remove_file(xdp_pin(dir, ifindex));
            }
        }
        if remainder.hook.is_none() {
            let _already_removed = interfaces.remove(&ifindex);
        }
    }
}

/// Detaches all programs of an instance from all interfaces.
pub(crate) fn detach_all(dir: &Path) {
    let interfaces = inspect::attached_interfaces(dir).unwrap_or_default();
    for ifindex in interfaces {
        tc::detach(dir, ifindex, None);
        let _not_attached = fs::remove_file(xdp_pin(dir, ifindex));
    }
}

/// Returns the TC program with this name.
///
/// # Errors
/// Fails if the object does not contain it.
pub(super) fn tc_program<'e>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut SchedClassifier, BpfError> {
    Ok(ebpf.program_mut(name).ok_or(BpfError::MissingFromObject(name))?.try_into()?)
}
