//! The program in the drivers of interfaces (XDP), in front of those that are everywhere.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};
use snisplit_common::abi::packet::XDP_PROGRAM;
use tracing::warn;

use super::links::{Link, early_pin};
use crate::kernel::{KernelError, patient};

/// Puts it where it is wanted; the answer is where it is. Where it does not go (another one is there, or the
/// MTU is too large for the driver), packets meet the other programs as before.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    links: &[Link],
    pins: Option<&Path>,
) -> Result<Vec<u32>, KernelError> {
    let mut there = Vec::new();
    let mut wanted = links.iter().filter(|link| link.in_driver).peekable();
    if wanted.peek().is_none() {
        return Ok(there);
    }
    let missing = || KernelError::Missing(XDP_PROGRAM);
    let program: &mut Xdp = ebpf.program_mut(XDP_PROGRAM).ok_or_else(missing)?.try_into()?;
    patient::load(|| program.load())?;
    for link in wanted {
        match place(program, link, pins) {
            Ok(()) => there.push(link.number),
            Err(error) => {
                let error = anyhow::Error::from(error);
                warn!(interface = link.name, "packet.xdp: not in this driver: {error:#}");
            }
        }
    }
    Ok(there)
}

/// In a place that stays; without a folder it goes with the program.
fn place(program: &mut Xdp, link: &Link, folder: Option<&Path>) -> Result<(), KernelError> {
    let pin = folder.map(|folder| early_pin(folder, link.number));
    if let Some(pin) = pin.as_ref().filter(|pin| pin.exists()) {
        if take_over(program, pin).is_ok() {
            return Ok(());
        }
        // Of an interface that is gone.
        fs::remove_file(pin)?;
    }
    let place = program.attach_to_if_index(link.number, XdpMode::Driver)?;
    if let Some(pin) = pin {
        FdLink::try_from(program.take_link(place)?)?.pin(pin)?;
    }
    Ok(())
}

fn take_over(program: &mut Xdp, pin: &Path) -> Result<(), KernelError> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    let taken: Result<_, ProgramError> = program.attach_to_link(XdpLink::try_from(old)?);
    taken?;
    Ok(())
}
