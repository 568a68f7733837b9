//! The packet engine, attached to this host.

use std::path::Path;

use anyhow::Result;
use tracing::info;

use crate::config::Config;
use crate::engine::Ladder;
use crate::engine::packet::{Packet, Ports};
use crate::kernel::packet::Link;
use crate::net::host::{self, Interface};

/// Attaches the engine and adds it to the ladder.
pub(super) fn load(config: &Config, ladder: &Ladder, pins: Option<&Path>) -> Result<()> {
    let ports = &config.packet.ports;
    let links = host::links(&config.packet)?;
    host::ensure_nobody_has(ports)?;
    host::let_loopback_forward()?;
    let links: Vec<Link> = links
        .into_iter()
        .map(|Interface { name, number, has_peer }| Link { name, number, has_peer })
        .collect();
    let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    let hook = config.packet.hook;
    info!(interfaces = names.join(" "), ?ports, ?hook, "packet");
    ladder.add_packet(Packet::load((&links, hook), Ports::new(ports.clone()), pins)?);
    Ok(())
}
