//! At which interfaces the programs are.

use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::TcAttachType;
use snisplit_common::abi::packet::{BY_PEER, BY_QUEUE, IN_PROGRAM, OUT_PROGRAM, SETTLE_PROGRAM};

use super::links::{self, Hook, Link};
use super::program;
use crate::kernel::{KernelError, pinned};

/// What this host says is gagged before anything is taken over.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    (links, hook): (&[Link], Hook),
    pins: Option<&Path>,
) -> Result<(), KernelError> {
    program(ebpf, SETTLE_PROGRAM)?.load()?;
    for (name, side) in [(OUT_PROGRAM, TcAttachType::Egress), (IN_PROGRAM, TcAttachType::Ingress)] {
        let program = program(ebpf, name)?;
        program.load()?;
        for link in links {
            links::attach(program, link, (hook, side), pins)?;
        }
    }
    Ok(())
}

/// Writes down where the programs are, and leaves all places that they had before and have no more.
pub(super) fn write_down(
    (links, hook): (&[Link], Hook),
    pins: Option<&Path>,
    interfaces: &mut HashMap<MapData, u32, u32>,
) -> Result<(), KernelError> {
    let before: Vec<u32> = interfaces.keys().flatten().collect();
    for number in before {
        let stays = links.iter().any(|link| link.number == number);
        pins.iter().for_each(|folder| links::remove(folder, number, stays.then_some(hook)));
        if !stays {
            interfaces.remove(&number)?;
        }
    }
    for Link { number, has_peer, .. } in links {
        interfaces.insert(*number, if *has_peer { BY_PEER } else { BY_QUEUE }, 0)?;
    }
    Ok(())
}

/// Leaves all places that an instance has at interfaces; without its pins nothing else would.
pub(crate) fn leave(folder: &Path) {
    let interfaces = pinned::interfaces(folder).unwrap_or_default();
    interfaces.into_iter().for_each(|number| links::remove(folder, number, None));
}
