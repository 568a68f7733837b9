//! `[packet]`: from text with places to what the packet engine may have of the host.

use std::ops::RangeInclusive;

use super::validate::{Diagnostics, Located};
use crate::engine::packet::Hook;

/// Ports that Linux gives to nobody by itself (`net.ipv4.ip_local_port_range` begins at 32768).
const DEFAULT_PORTS: RangeInclusive<u16> = 16_384..=32_767;

/// What the packet engine may have of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketConfig {
    /// `interfaces`; empty for all Ethernet interfaces with an address.
    pub interfaces: Vec<String>,
    /// `ports`: its source ports towards back ends.
    pub ports: RangeInclusive<u16>,
    /// `hook`: where at an interface its programs are.
    pub hook: Hook,
    /// `xdp`: whether drivers that can have its program too.
    pub xdp: bool,
}

impl Default for PacketConfig {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            ports: DEFAULT_PORTS,
            hook: Hook::best_supported(),
            xdp: false,
        }
    }
}

/// One that is not understood yet.
#[derive(Debug, Default)]
pub(super) struct DraftPacket {
    pub(super) interfaces: Vec<Located<String>>,
    pub(super) ports: Option<Located<String>>,
    pub(super) hook: Option<Located<String>>,
    pub(super) xdp: Option<Located<bool>>,
}

pub(super) fn build(draft: DraftPacket, diagnostics: &mut Diagnostics) -> PacketConfig {
    let default = PacketConfig::default();
    let ports =
        diagnostics.parse_optional("packet.ports", draft.ports, |text| parse_port_range(&text));
    let hook = diagnostics.parse_optional("packet.hook", draft.hook, |text| parse_hook(&text));
    PacketConfig {
        interfaces: draft.interfaces.into_iter().map(|item| item.value).collect(),
        ports: ports.unwrap_or(default.ports),
        hook: hook.flatten().unwrap_or(default.hook),
        xdp: draft.xdp.map_or(default.xdp, |item| item.value),
    }
}

/// `None` is the best that the kernel has.
fn parse_hook(text: &str) -> Result<Option<Hook>, String> {
    match text {
        "auto" => Ok(None),
        "tcx" => Ok(Some(Hook::Tcx)),
        "clsact" => Ok(Some(Hook::Clsact)),
        _ => Err(format!("\"{text}\" is unknown; one of auto, tcx, clsact")),
    }
}

/// The first and the last port.
fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(from, to)| {
        Some(from.trim().parse::<u16>().ok()?..=to.trim().parse::<u16>().ok()?)
    });
    range.filter(|range| !range.is_empty() && *range.start() >= 1_024).ok_or_else(|| {
        format!("\"{text}\" is no range of ports from 1024 on; write it like \"16384-32767\"")
    })
}
