//! The start of the packet engine: checks of the host, and the interfaces to attach to.

use std::path::Path;

use anyhow::Result;
use tracing::{info, warn};

use crate::bpf::packet::{AttachPlan, AttachTarget, Hook};
use crate::config::{Config, HookChoice};
use crate::engine::EngineSelector;
use crate::engine::packet::{PacketEngine, PortAllocator};
use crate::net::host::{self, Interface};
use crate::sys;

/// Attaches the packet engine to the interfaces and makes it available.
///
/// # Errors
///
/// An interface or the port range of the configuration cannot be used, or the kernel rejects the
/// programs.
pub(super) fn load(config: &Config, selector: &EngineSelector, pins: Option<&Path>) -> Result<()> {
    let ports = &config.packet.ports;
    let interfaces = host::select_interfaces(&config.packet)?;
    host::ensure_ports_reserved(ports)?;
    host::enable_lo_forwarding()?;
    let targets: Vec<AttachTarget> = interfaces
        .into_iter()
        .map(|interface| {
            let use_xdp = config.packet.xdp && supports_xdp(&interface);
            let Interface { name, ifindex, peer_in_other_netns, .. } = interface;
            AttachTarget { name, ifindex, peer_in_other_netns, use_xdp }
        })
        .collect();
    if config.packet.xdp && targets.iter().all(|target| !target.use_xdp) {
        warn!(
            "packet.xdp: no interface supports it; only the programs of packet.hook are attached"
        );
    }
    let plan =
        AttachPlan::new(targets, requested_hook(config.packet.hook), Hook::is_tcx_supported())?;
    let packet = PacketEngine::load(&plan, PortAllocator::new(ports.clone()), pins);
    // Parsing BTF takes some 50 MB, which the allocator would not return to the kernel.
    sys::trim_heap();
    let packet = packet?;
    packet.enable_xdp_redirect(host::supports_ndo_xdp_xmit)?;
    let names: Vec<&str> = plan.targets().iter().map(|target| target.name.as_str()).collect();
    let (hook, xdp_interfaces) = (plan.hook(), plan.xdp_targets().count());
    let ports = format_args!("{}-{}", ports.start(), ports.end());
    info!(interfaces = names.join(" "), %ports, %hook, xdp_interfaces, "packet engine attached");
    selector.set_packet(packet);
    Ok(())
}

const fn requested_hook(choice: HookChoice) -> Option<Hook> {
    match choice {
        HookChoice::Auto => None,
        HookChoice::Tcx => Some(Hook::Tcx),
        HookChoice::Clsact => Some(Hook::Clsact),
    }
}

/// Returns whether an interface's driver supports the XDP program, and logs why not.
fn supports_xdp(interface: &Interface) -> bool {
    let reason = host::xdp_unsupported_reason(interface);
    if let Some(reason) = &reason {
        info!(interface = interface.name, "packet.xdp: not supported by this driver: {reason}");
    }
    reason.is_none()
}
