//! Requirements of the packet engine on the host, and the netfilter rules that its flows bypass.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) use super::interfaces::Interface;
use super::netlink::count_nf_tables;
use super::{interfaces, netdev};
use crate::config::PacketConfig;

/// Sysctls that `bpf_fib_lookup` requires to be 1: forwarding of the interface that a program looks up
/// routes for. The packet programs pass the loopback interface, which no other packet is forwarded from.
const LO_FORWARDING_SYSCTLS: [&str; 2] =
    ["/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/lo/forwarding"];

/// Enables forwarding for the loopback interface. Other interfaces keep their settings.
///
/// # Errors
///
/// A sysctl cannot be written.
pub(crate) fn enable_lo_forwarding() -> Result<()> {
    for sysctl in LO_FORWARDING_SYSCTLS.into_iter().filter(|switch| Path::new(switch).exists()) {
        fs::write(sysctl, "1").with_context(|| format!("{sysctl} must be 1"))?;
    }
    Ok(())
}

/// Counts the tables of netfilter rules that packets of offloaded flows bypass. `None` if the kernel
/// does not list them.
pub(crate) fn bypassed_nf_tables() -> Option<usize> {
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    let legacy = legacy.map(|names| fs::read_to_string(names).map_or(0, |all| all.lines().count()));
    Some(count_nf_tables().ok()? + legacy.iter().sum::<usize>())
}

/// Returns the interfaces to attach to.
///
/// # Errors
///
/// The kernel does not list its interfaces, a configured one does not exist, or there is none.
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

/// Returns why the driver of an interface does not support the XDP program; `None` if it does.
pub(crate) fn xdp_unsupported_reason(interface: &Interface) -> Option<String> {
    if interface.is_veth {
        // A veth transmits redirected frames only while its peer has XDP or GRO (veth_xdp_xmit).
        return Some("a veth".into());
    }
    match netdev::has_features(interface.ifindex, netdev::XDP_BASIC_REDIRECT) {
        Ok(true) => None,
        Ok(false) => Some("no native XDP".into()),
        Err(error) => {
            Some(format!("the kernel does not list its features (Linux 6.3 does): {error}"))
        }
    }
}

/// Returns whether the driver of an interface transmits frames that other drivers redirect.
pub(crate) fn supports_ndo_xdp_xmit(ifindex: u32) -> bool {
    netdev::has_features(ifindex, netdev::NDO_XMIT).unwrap_or_default()
}

/// Checks that the kernel assigns no port of this range to other sockets.
///
/// # Errors
///
/// A port is in `ip_local_port_range` and not reserved.
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
            "packet.ports: the kernel may assign port {port} to other sockets; add {}-{} to \
             net.ipv4.ip_local_reserved_ports, or choose other ports",
            overlap.start(),
            overlap.end()
        );
    }
    Ok(())
}
