//! `[packet]`: what the packet engine may use of the host.

use std::ops::RangeInclusive;

use super::choices::HookChoice;
use super::diagnostic::Diagnostics;
use super::{defaults, schema};

/// What the packet engine may use of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketConfig {
    /// Empty for all Ethernet interfaces with an address.
    pub interfaces: Vec<String>,
    /// Source ports of connections to back ends.
    pub ports: RangeInclusive<u16>,
    /// Attach point of its programs at an interface.
    pub hook: HookChoice,
    /// Whether to attach in drivers too, where they support it.
    pub xdp: bool,
}

impl Default for PacketConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            ports: defaults::PACKET_PORTS,
            hook: HookChoice::default(),
            xdp: defaults::PACKET_XDP,
        }
    }
}

pub(super) fn build(table: schema::Packet, diagnostics: &mut Diagnostics) -> PacketConfig {
    let interfaces = diagnostics.values("packet.interfaces", table.interfaces);
    let ports = diagnostics.value("packet.ports", table.ports);
    let hook = diagnostics.value("packet.hook", table.hook);
    let xdp = diagnostics.value("packet.xdp", table.xdp);
    let default = PacketConfig::default();
    PacketConfig {
        interfaces: interfaces.unwrap_or(default.interfaces),
        ports: ports.unwrap_or(default.ports),
        hook: hook.unwrap_or(default.hook),
        xdp: xdp.unwrap_or(default.xdp),
    }
}
