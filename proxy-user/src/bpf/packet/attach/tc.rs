//! Attachment of the TC programs, which outlives the agent: by a pinned link (tcx), or by a filter that
//! stays until it is removed (clsact).

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{SchedClassifier, TcAttachType};
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType, socket};

use super::plan::{AttachTarget, Hook};
use crate::bpf::error::BpfError;
use crate::bpf::packet::pins::tc_pin;

const ATTACH_TYPES: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// Priority of the filters: before all others.
const FILTER_PRIORITY: u16 = 1;

/// Returns the handle of the filters of an instance: a hash (FNV-1a) of the path of its pins.
fn filter_handle(dir: &Path) -> TcHandle {
    let name = dir.as_os_str().as_encoded_bytes();
    let hash = name.iter().fold(0x811c_9dc5_u32, |number, byte| {
        (number ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    TcHandle::from(hash.max(1))
}

/// Attaches a program to an interface.
///
/// With `pin_dir`, the attachment outlives the agent. If another agent has left one, this replaces its
/// program without a gap. Without `pin_dir`, the program is detached when it is dropped.
///
/// # Errors
/// Fails if the interface does not accept the program, or if bpffs does not accept the pin.
pub(super) fn attach(
    program: &mut SchedClassifier,
    target: &AttachTarget,
    hook: Hook,
    attach_type: TcAttachType,
    pin_dir: Option<&Path>,
) -> Result<(), BpfError> {
    match hook {
        Hook::Tcx => attach_tcx(program, target, attach_type, pin_dir),
        Hook::Clsact => attach_clsact(program, target, attach_type, pin_dir),
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    AttachTarget { name, ifindex, .. }: &AttachTarget,
    attach_type: TcAttachType,
    pin_dir: Option<&Path>,
) -> Result<(), BpfError> {
    let order = || TcAttachOptions::TcxOrder(LinkOrder::first());
    let Some(dir) = pin_dir else {
        program.attach_with_options(name, attach_type, order())?;
        return Ok(());
    };
    let pin = tc_pin(dir, attach_type, *ifindex);
    if pin.exists() && replace_program(program, &pin).is_ok() {
        return Ok(());
    }
    // A link that cannot be updated belongs to an interface that does not exist.
    let _no_pin = fs::remove_file(&pin);
    let link_id = program.attach_with_options(name, attach_type, order())?;
    let link = FdLink::try_from(program.take_link(link_id)?)?;
    link.pin(&pin)?;
    Ok(())
}

fn replace_program(program: &mut SchedClassifier, pin: &Path) -> Result<(), BpfError> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    program.attach_to_link(SchedClassifierLink::try_from(old)?)?;
    Ok(())
}

fn attach_clsact(
    program: &mut SchedClassifier,
    AttachTarget { name, .. }: &AttachTarget,
    attach_type: TcAttachType,
    pin_dir: Option<&Path>,
) -> Result<(), BpfError> {
    // The agent does not remove it at its end, because others may have filters there.
    let _already_exists = qdisc_add_clsact(name);
    let new = |handle| {
        TcAttachOptions::Netlink(NlOptions { priority: FILTER_PRIORITY, handle, classid: None })
    };
    let Some(dir) = pin_dir else {
        program.attach_with_options(name, attach_type, new(TcHandle::AUTO_ASSIGN))?;
        return Ok(());
    };
    let link_id = match program.attach_to_link(find_filter(dir, name, attach_type)?) {
        Ok(link_id) => link_id,
        Err(_no_filter) => {
            program.attach_with_options(name, attach_type, new(filter_handle(dir)))?
        }
    };
    std::mem::forget(program.take_link(link_id)?);
    Ok(())
}

/// Returns the filter of an instance at an interface. Dropping it removes the filter from the kernel.
fn find_filter(
    dir: &Path,
    name: &str,
    attach_type: TcAttachType,
) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, attach_type, FILTER_PRIORITY, filter_handle(dir), None)
}

/// Detaches the programs of an instance from an interface, except at one hook.
pub(super) fn detach(dir: &Path, ifindex: u32, except: Option<Hook>) {
    for hook in Hook::ALL.into_iter().filter(|hook| Some(*hook) != except) {
        match hook {
            Hook::Tcx => ATTACH_TYPES
                .iter()
                .for_each(|attach_type| _ = fs::remove_file(tc_pin(dir, *attach_type, ifindex))),
            Hook::Clsact => detach_clsact(dir, ifindex),
        }
    }
}

fn detach_clsact(dir: &Path, ifindex: u32) {
    let probe_socket = socket(AddressFamily::INET, SocketType::DGRAM, None);
    let Ok(name) = probe_socket.and_then(|socket| index_to_name(socket, ifindex)) else { return };
    ATTACH_TYPES.into_iter().for_each(|attach_type| drop(find_filter(dir, &name, attach_type)));
}
