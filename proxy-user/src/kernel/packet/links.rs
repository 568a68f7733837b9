//! Places of the programs at interfaces, which outlive the agent: pinned links (tcx), or filters
//! (clsact), which stay where they are until somebody removes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType, socket};

use super::KernelError;

/// An interface that packets of flows come and go by.
pub(crate) struct Link {
    /// Its name.
    pub(crate) name: String,
    /// Its number.
    pub(crate) number: u32,
    /// Whether it is one end of a veth pair, and the other end in another network namespace.
    pub(crate) has_peer: bool,
    /// Whether the program of drivers is wanted in its driver.
    pub(crate) in_driver: bool,
}

/// What an interface has for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Since Linux 6.6, in front of all filters. A program is replaced without missing a packet.
    Tcx,
    /// The queueing discipline of that name, and a filter of ours on each side of it.
    Clsact,
}

impl Hook {
    const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];

    /// The best that this kernel has.
    pub(crate) fn of_this_kernel() -> Self {
        let since = KernelVersion::new(6, 6, 0);
        match KernelVersion::current().is_ok_and(|version| version >= since) {
            true => Self::Tcx,
            false => Self::Clsact,
        }
    }
}

const SIDES: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// What the pins of places begin with; the interface's number follows.
const PREFIXES: [&str; 2] = ["in_", "out_"];

/// Of the place in its driver.
const EARLY: &str = "early_";

/// Of a filter: in front of all others.
const PRIORITY: u16 = 1;

/// Whether a pin of this name is a place.
pub(super) fn is_ours(name: &str) -> bool {
    PREFIXES.iter().chain([&EARLY]).any(|prefix| name.starts_with(prefix))
}

/// The pin of the place in an interface's driver.
pub(super) fn early_pin(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{EARLY}{number}"))
}

fn pin(folder: &Path, side: TcAttachType, number: u32) -> PathBuf {
    let [inward, outward] = PREFIXES;
    let prefix = if matches!(side, TcAttachType::Ingress) { inward } else { outward };
    folder.join(format!("{prefix}{number}"))
}

/// The filters of an instance have a number that no other has: its folder's name as one (FNV-1a).
fn handle(folder: &Path) -> TcHandle {
    let name = folder.as_os_str().as_encoded_bytes();
    let number = name.iter().fold(0x811c_9dc5_u32, |number, byte| {
        (number ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    TcHandle::from(number.max(1))
}

/// Attaches to an interface, in a place that stays. Where another agent has left one, its program is
/// replaced at once: no packet is missed. Without a folder the place goes with the program.
pub(super) fn attach(
    program: &mut SchedClassifier,
    link: &Link,
    (hook, side): (Hook, TcAttachType),
    folder: Option<&Path>,
) -> Result<(), KernelError> {
    match hook {
        Hook::Tcx => attach_tcx(program, link, side, folder),
        Hook::Clsact => attach_filter(program, link, side, folder),
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    Link { name, number, .. }: &Link,
    side: TcAttachType,
    folder: Option<&Path>,
) -> Result<(), KernelError> {
    let order = || TcAttachOptions::TcxOrder(LinkOrder::first());
    let Some(folder) = folder else {
        program.attach_with_options(name, side, order())?;
        return Ok(());
    };
    let pin = pin(folder, side, *number);
    if pin.exists() && take_over(program, &pin).is_ok() {
        return Ok(());
    }
    // Of an interface that is gone.
    let _there_was_none = fs::remove_file(&pin);
    let place = program.attach_with_options(name, side, order())?;
    let link = FdLink::try_from(program.take_link(place)?)?;
    link.pin(&pin)?;
    Ok(())
}

fn take_over(program: &mut SchedClassifier, pin: &Path) -> Result<(), KernelError> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    program.attach_to_link(SchedClassifierLink::try_from(old)?)?;
    Ok(())
}

fn attach_filter(
    program: &mut SchedClassifier,
    Link { name, .. }: &Link,
    side: TcAttachType,
    folder: Option<&Path>,
) -> Result<(), KernelError> {
    // It stays when we go: others may have filters there by then.
    let _there_already = qdisc_add_clsact(name);
    let new =
        |handle| TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle, classid: None });
    let Some(folder) = folder else {
        program.attach_with_options(name, side, new(TcHandle::AUTO_ASSIGN))?;
        return Ok(());
    };
    let place = match program.attach_to_link(filter(folder, name, side)?) {
        Ok(place) => place,
        Err(_there_is_none) => program.attach_with_options(name, side, new(handle(folder)))?,
    };
    std::mem::forget(program.take_link(place)?);
    Ok(())
}

/// The filter of an instance at an interface, if there is one. Dropping it removes it.
fn filter(folder: &Path, name: &str, side: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, side, PRIORITY, handle(folder), None)
}

/// Leaves all places at an interface but those at this hook.
pub(super) fn remove(folder: &Path, number: u32, but: Option<Hook>) {
    for hook in Hook::ALL.into_iter().filter(|hook| Some(*hook) != but) {
        match hook {
            Hook::Tcx => {
                SIDES.iter().for_each(|side| _ = fs::remove_file(pin(folder, *side, number)))
            }
            Hook::Clsact => remove_filters(folder, number),
        }
    }
}

fn remove_filters(folder: &Path, number: u32) {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None);
    let Ok(name) = any.and_then(|any| index_to_name(any, number)) else { return };
    SIDES.into_iter().for_each(|side| drop(filter(folder, &name, side)));
}
