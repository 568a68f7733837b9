//! At which interfaces the programs are.

use std::fs;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::TcAttachType;
use snisplit_common::abi::packet::{
    CONTROL_PROGRAM, EGRESS_PROGRAM, INGRESS_PROGRAM, XMIT_PEER, XMIT_QDISC,
};

use super::links::{self, Hook, Link};
use super::program;
use crate::kernel::{KernelError, patient, pinned};

/// What this host says is gagged before anything is taken over.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    (links, hook): (&[Link], Hook),
    pins: Option<&Path>,
) -> Result<(), KernelError> {
    let settle = program(ebpf, CONTROL_PROGRAM)?;
    patient::load(|| settle.load())?;
    for (name, side) in
        [(EGRESS_PROGRAM, TcAttachType::Egress), (INGRESS_PROGRAM, TcAttachType::Ingress)]
    {
        let program = program(ebpf, name)?;
        patient::load(|| program.load())?;
        for link in links {
            links::attach(program, link, (hook, side), pins)?;
        }
    }
    Ok(())
}

/// Writes down where the programs are to be, before they are: a start that fails half-way must find
/// them. The answer is where they were.
pub(super) fn write_down(
    links: &[Link],
    interfaces: &mut HashMap<MapData, u32, u32>,
) -> Result<Vec<u32>, KernelError> {
    let before = interfaces.keys().flatten().collect();
    for Link { number, has_peer, .. } in links {
        interfaces.insert(*number, if *has_peer { XMIT_PEER } else { XMIT_QDISC }, 0)?;
    }
    Ok(before)
}

/// Leaves all places that the programs had before and have no more.
pub(super) fn leave_others(
    (links, hook): (&[Link], Hook),
    before: &[u32],
    pins: Option<&Path>,
    interfaces: &mut HashMap<MapData, u32, u32>,
) {
    for number in before {
        let stays = links.iter().find(|link| link.number == *number);
        if let Some(folder) = pins {
            links::remove(folder, *number, stays.map(|_| hook));
            if stays.is_none_or(|link| !link.in_driver) {
                let _there_was_none = fs::remove_file(links::early_pin(folder, *number));
            }
        }
        if stays.is_none() {
            let _gone_already = interfaces.remove(number);
        }
    }
}

/// Leaves all places that an instance has at interfaces; without its pins nothing else would.
pub(crate) fn leave(folder: &Path) {
    let interfaces = pinned::interfaces(folder).unwrap_or_default();
    for number in interfaces {
        links::remove(folder, number, None);
        let _there_was_none = fs::remove_file(links::early_pin(folder, number));
    }
}
