//! What the packet engine needs of the host.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use tracing::info;

use crate::config::Config;
use crate::engine::Ladder;
use crate::engine::packet::{Packet, Ports};
use crate::net::links;

/// What the kernel asks when it looks for a packet's way on behalf of a program: that the interface
/// which it is asked for forwards. Ours is the loopback interface, by which nothing else is forwarded.
const FORWARDING: [&str; 2] =
    ["/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/lo/forwarding"];

/// Attaches the engine and adds it to the ladder.
pub(super) fn load(config: &Config, ladder: &Ladder, pins: Option<&Path>) -> Result<()> {
    let ports = &config.packet.ports;
    ensure_free(ports)?;
    for switch in FORWARDING.into_iter().filter(|switch| Path::new(switch).exists()) {
        fs::write(switch, "1").with_context(|| format!("{switch} must be 1"))?;
    }
    let links = chosen(config)?;
    let names: Vec<&str> = links.iter().map(|(name, _)| name.as_str()).collect();
    info!(interfaces = names.join(" "), ?ports, "packet");
    ladder.add_packet(Packet::load(&links, Ports::new(ports.clone()), pins)?);
    Ok(())
}

fn chosen(config: &Config) -> Result<Vec<(String, u32)>> {
    let all = links::with_addresses().context("cannot list the interfaces")?;
    let wanted = &config.packet.interfaces;
    if let Some(unknown) = wanted.iter().find(|name| all.iter().all(|(other, _)| other != *name)) {
        bail!("packet.interfaces: \"{unknown}\" is no Ethernet interface with an address");
    }
    let is_wanted = |(name, _): &(String, u32)| wanted.is_empty() || wanted.contains(name);
    let chosen: Vec<_> = all.into_iter().filter(is_wanted).collect();
    ensure!(!chosen.is_empty(), "packet.interfaces: this host has no Ethernet interface");
    Ok(chosen)
}

/// The kernel must give none of our ports to anybody else.
fn ensure_free(ports: &RangeInclusive<u16>) -> Result<()> {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let text = fs::read_to_string(RANGE).context(RANGE)?;
    let given: Vec<u16> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [first, last] = given[..] else { bail!("{RANGE} is \"{}\"", text.trim()) };
    let reserved = fs::read_to_string(RESERVED).unwrap_or_default();
    let is_reserved = |port: u16| {
        reserved.trim().split(',').any(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            from.parse().is_ok_and(|from: u16| from <= port)
                && to.parse().is_ok_and(|to: u16| port <= to)
        })
    };
    let both = *ports.start().max(&first)..=*ports.end().min(&last);
    if let Some(port) = both.clone().find(|port| !is_reserved(*port)) {
        bail!(
            "packet.ports: the kernel gives port {port} to anybody; add {}-{} to \
             net.ipv4.ip_local_reserved_ports, or choose others",
            both.start(),
            both.end()
        );
    }
    Ok(())
}
