//! Places of the programs at interfaces (tcx), which outlive the agent while they are pinned.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};

use super::KernelError;

/// An interface that packets of flows come and go by.
pub(crate) struct Link {
    /// Its name.
    pub(crate) name: String,
    /// Its number.
    pub(crate) number: u32,
    /// Whether it is one end of a veth pair, and the other end in another network namespace.
    pub(crate) has_peer: bool,
}

/// What the pins of places begin with; the interface's number follows.
const PREFIXES: [&str; 2] = ["in_", "out_"];

/// Whether a pin of this name is a place.
pub(super) fn is_ours(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn pin(folder: &Path, hook: TcAttachType, number: u32) -> PathBuf {
    let [inward, outward] = PREFIXES;
    let prefix = if matches!(hook, TcAttachType::Ingress) { inward } else { outward };
    folder.join(format!("{prefix}{number}"))
}

/// Attaches to an interface, and pins the place. Where another agent has left one, its program is
/// replaced at once: no packet is missed.
pub(super) fn attach(
    program: &mut SchedClassifier,
    Link { name, number, .. }: &Link,
    hook: TcAttachType,
    folder: Option<&Path>,
) -> Result<(), KernelError> {
    let order = || TcAttachOptions::TcxOrder(LinkOrder::first());
    let Some(folder) = folder else {
        program.attach_with_options(name, hook, order())?;
        return Ok(());
    };
    let pin = pin(folder, hook, *number);
    if pin.exists() && take_over(program, &pin).is_ok() {
        return Ok(());
    }
    // Of an interface that is gone.
    let _there_was_none = fs::remove_file(&pin);
    let place = program.attach_with_options(name, hook, order())?;
    let link = FdLink::try_from(program.take_link(place)?)?;
    link.pin(&pin)?;
    Ok(())
}

fn take_over(program: &mut SchedClassifier, pin: &Path) -> Result<(), KernelError> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    program.attach_to_link(SchedClassifierLink::try_from(old)?)?;
    Ok(())
}

/// Leaves interfaces that are not wanted any more.
pub(super) fn remove_others(folder: &Path, wanted: &[Link]) {
    let ours: Vec<PathBuf> = wanted
        .iter()
        .flat_map(|link| {
            [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| pin(folder, hook, link.number))
        })
        .collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_ours(&entry.file_name().to_string_lossy()) && !ours.contains(&entry.path()) {
            let _gone_already = fs::remove_file(entry.path());
        }
    }
}
