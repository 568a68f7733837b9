//! The packet engine, attached to this host.

use std::path::Path;

use anyhow::Result;
use tracing::{info, warn};

use crate::bpf::packet::{AttachTarget, Hook};
use crate::config::{Config, HookChoice};
use crate::engine::EngineSelector;
use crate::engine::packet::{PacketEngine, PortAllocator};
use crate::net::host::{self, Interface};
use crate::sys;

/// Attaches the engine and adds it to the ladder.
pub(super) fn load(config: &Config, ladder: &EngineSelector, pins: Option<&Path>) -> Result<()> {
    let ports = &config.packet.ports;
    let links = host::select_interfaces(&config.packet)?;
    host::ensure_ports_reserved(ports)?;
    host::enable_lo_forwarding()?;
    let targets: Vec<AttachTarget> = links
        .into_iter()
        .map(|interface| {
            let in_driver = config.packet.xdp && supports_xdp(&interface);
            let Interface { name, ifindex: number, peer_in_other_netns: has_peer, .. } = interface;
            AttachTarget {
                name,
                ifindex: number,
                peer_in_other_netns: has_peer,
                use_xdp: in_driver,
            }
        })
        .collect();
    if config.packet.xdp && targets.iter().all(|link| !link.use_xdp) {
        warn!("packet.xdp: no interface can have it; packets meet the programs of `hook` only");
    }
    let names: Vec<&str> = targets.iter().map(|link| link.name.as_str()).collect();
    let hook = resolve_hook(config.packet.hook);
    let xdp_interfaces = targets.iter().filter(|link| link.use_xdp).count();
    info!(interfaces = names.join(" "), ?ports, ?hook, xdp_interfaces, "packet");
    let packet = PacketEngine::load((&targets, hook), PortAllocator::new(ports.clone()), pins);
    // The kernel's types took some 50 MB for a moment.
    sys::trim_heap();
    let packet = packet?;
    packet.enable_xdp_redirect(host::supports_ndo_xdp_xmit)?;
    ladder.set_packet(packet);
    Ok(())
}

fn resolve_hook(choice: HookChoice) -> Hook {
    match choice {
        HookChoice::Auto => Hook::best_supported(),
        HookChoice::Tcx => Hook::Tcx,
        HookChoice::Clsact => Hook::Clsact,
    }
}

/// Whether its driver can have the program of drivers.
fn supports_xdp(interface: &Interface) -> bool {
    let reason = host::xdp_unsupported_reason(interface);
    if let Some(why) = &reason {
        info!(interface = interface.name, "packet.xdp: not in this driver: {why}");
    }
    reason.is_none()
}
