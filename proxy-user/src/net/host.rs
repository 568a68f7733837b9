//! What the packet engine needs of the host, and what it goes past.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) use super::interfaces::Interface;
use super::netlink::count_nf_tables;
use super::{interfaces, netdev};
use crate::config::PacketConfig;

/// What the kernel asks when it looks for a packet's way on behalf of a program: that the interface
/// which it is asked for forwards. Ours is the loopback interface, by which nothing else is forwarded.
const LO_FORWARDING_SYSCTLS: [&str; 2] =
    ["/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/lo/forwarding"];

/// Lets packets be forwarded on behalf of the loopback interface; no other forwards for that.
pub(crate) fn enable_lo_forwarding() -> Result<()> {
    for sysctl in LO_FORWARDING_SYSCTLS.into_iter().filter(|switch| Path::new(switch).exists()) {
        fs::write(sysctl, "1").with_context(|| format!("{sysctl} must be 1"))?;
    }
    Ok(())
}

/// How many tables of rules packets of a flow go past, once it has left its sockets; `None` if nobody
/// says.
pub(crate) fn bypassed_nf_tables() -> Option<usize> {
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    let legacy = legacy.map(|names| fs::read_to_string(names).map_or(0, |all| all.lines().count()));
    Some(count_nf_tables().ok()? + legacy.iter().sum::<usize>())
}

/// The interfaces to attach to.
pub(crate) fn select_interfaces(packet: &PacketConfig) -> Result<Vec<Interface>> {
    let all = interfaces::list_with_addresses().context("cannot list the interfaces")?;
    let wanted = &packet.interfaces;
    if let Some(unknown) = wanted.iter().find(|name| all.iter().all(|link| link.name != **name)) {
        bail!("packet.interfaces: \"{unknown}\" is no Ethernet interface with an address");
    }
    let is_wanted = |link: &Interface| wanted.is_empty() || wanted.contains(&link.name);
    let selected: Vec<_> = all.into_iter().filter(is_wanted).collect();
    ensure!(
        !selected.is_empty(),
        "packet.interfaces: this host has no Ethernet interface with an address"
    );
    Ok(selected)
}

/// Why an interface's driver cannot have the program of drivers (XDP), if it cannot.
pub(crate) fn xdp_unsupported_reason(interface: &Interface) -> Option<String> {
    if interface.is_veth {
        // It takes frames only as long as its other end has XDP or GRO (veth_xdp_xmit).
        return Some("a veth".into());
    }
    match netdev::has_features(interface.ifindex, netdev::XDP_BASIC_REDIRECT) {
        Ok(true) => None,
        Ok(false) => Some("no native XDP".into()),
        Err(error) => Some(format!("the kernel does not say (Linux 6.3 does): {error}")),
    }
}

/// Whether an interface's driver takes frames of others.
pub(crate) fn supports_ndo_xdp_xmit(ifindex: u32) -> bool {
    netdev::has_features(ifindex, netdev::NDO_XMIT).unwrap_or_default()
}

/// The kernel must give none of our ports to anybody else.
pub(crate) fn ensure_ports_reserved(ports: &RangeInclusive<u16>) -> Result<()> {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let text = fs::read_to_string(RANGE).context(RANGE)?;
    let bounds: Vec<u16> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [first, last] = bounds[..] else { bail!("{RANGE} is \"{}\"", text.trim()) };
    let reserved = fs::read_to_string(RESERVED).unwrap_or_default();
    let is_reserved = |port: u16| {
        reserved.trim().split(',').any(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            from.parse().is_ok_and(|from: u16| from <= port)
                && to.parse().is_ok_and(|to: u16| port <= to)
        })
    };
    let overlap = *ports.start().max(&first)..=*ports.end().min(&last);
    if let Some(port) = overlap.clone().find(|port| !is_reserved(*port)) {
        bail!(
            "packet.ports: the kernel gives port {port} to anybody; add {}-{} to \
             net.ipv4.ip_local_reserved_ports, or choose others",
            overlap.start(),
            overlap.end()
        );
    }
    Ok(())
}
