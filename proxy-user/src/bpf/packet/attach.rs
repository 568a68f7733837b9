//! At which interfaces the programs are.

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

mod tc;
mod xdp;

pub(crate) use tc::{AttachTarget, Hook};
pub(super) use xdp::attach as load_and_attach_xdp;

/// What this host says is gagged before anything is taken over.
pub(super) fn load_and_attach(
    ebpf: &mut Ebpf,
    (links, hook): (&[AttachTarget], Hook),
    pins: Option<&Path>,
) -> Result<(), BpfError> {
    let control = tc_program(ebpf, CONTROL_PROGRAM)?;
    load_retry::load_program(|| control.load())?;
    for (name, attach_type) in
        [(EGRESS_PROGRAM, TcAttachType::Egress), (INGRESS_PROGRAM, TcAttachType::Ingress)]
    {
        let program = tc_program(ebpf, name)?;
        load_retry::load_program(|| program.load())?;
        for link in links {
            tc::attach(program, link, (hook, attach_type), pins)?;
        }
    }
    Ok(())
}

/// Writes down where the programs are to be, before they are: a start that fails half-way must find
/// them. The answer is where they were.
pub(super) fn record_interfaces(
    links: &[AttachTarget],
    interfaces: &mut HashMap<MapData, u32, u32>,
) -> Result<Vec<u32>, BpfError> {
    let previous = interfaces.keys().flatten().collect();
    for AttachTarget { ifindex, peer_in_other_netns, .. } in links {
        interfaces.insert(
            *ifindex,
            if *peer_in_other_netns { XMIT_PEER } else { XMIT_QDISC },
            0,
        )?;
    }
    Ok(previous)
}

/// Leaves all places that the programs had before and have no more.
pub(super) fn detach_unlisted(
    (links, hook): (&[AttachTarget], Hook),
    previous: &[u32],
    pins: Option<&Path>,
    interfaces: &mut HashMap<MapData, u32, u32>,
) {
    for number in previous {
        let target = links.iter().find(|link| link.ifindex == *number);
        if let Some(folder) = pins {
            tc::detach(folder, *number, target.map(|_| hook));
            if target.is_none_or(|link| !link.use_xdp) {
                let _there_was_none = fs::remove_file(xdp_pin(folder, *number));
            }
        }
        if target.is_none() {
            let _gone_already = interfaces.remove(number);
        }
    }
}

/// Leaves all places that an instance has at interfaces; without its pins nothing else would.
pub(crate) fn detach_all(dir: &Path) {
    let interfaces = inspect::attached_interfaces(dir).unwrap_or_default();
    for ifindex in interfaces {
        tc::detach(dir, ifindex, None);
        let _there_was_none = fs::remove_file(xdp_pin(dir, ifindex));
    }
}

/// The program of that name in the object.
pub(super) fn tc_program<'e>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<&'e mut SchedClassifier, BpfError> {
    Ok(ebpf.program_mut(name).ok_or(BpfError::MissingFromObject(name))?.try_into()?)
}
