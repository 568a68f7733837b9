//! Links between namespaces.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use crate::namespace::{Namespace, ip, wait_for_ipv6};
use crate::wait::wait_until;

/// A host at one end of a link.
pub(crate) struct Host<'n> {
    pub(crate) namespace: &'n Namespace,
    pub(crate) v4: Ipv4Addr,
    /// Digits of its IPv6 address `fd91:{net}::{host}`, as 0x1002 for net 1 and host 2. The interface at the other end of
    /// the link is named after it.
    pub(crate) id: u16,
}

/// One end of a link.
pub(crate) struct LinkEnd<'n> {
    pub(crate) namespace: &'n Namespace,
    pub(crate) interface: &'n str,
}

/// Creates a link without impairment.
pub(crate) fn create_veth([left, right]: [LinkEnd<'_>; 2]) {
    let peer = ["type", "veth", "peer", "name", right.interface, "netns", right.namespace.name()];
    ip(&[&["-n", left.namespace.name(), "link", "add", left.interface][..], &peer].concat());
}

/// Creates a veth link with a VLAN on it. The interfaces add the VLAN's tag to packets that they send, and receive packets
/// with that tag only. Each link has another tag.
pub(crate) fn create_vlan(ends: [LinkEnd<'_>; 2]) {
    let (_, tag) = ends[0].interface.split_once('-').unwrap();
    let trunks = ends.map(|LinkEnd { namespace, interface: link }| {
        (namespace, link, link.replace("to", "trunk"))
    });
    create_veth(
        trunks.each_ref().map(|(namespace, _, trunk)| LinkEnd { namespace, interface: trunk }),
    );
    for (namespace, link, trunk) in &trunks {
        let name = namespace.name();
        ip(&["-n", name, "link", "set", trunk, "up"]);
        let kind = ["type", "vlan", "id", tag];
        ip(&[&["-n", name, "link", "add", "link", trunk, "name", link][..], &kind].concat());
    }
}

/// Makes a NIC with this Ethernet address one end of a link.
///
/// When the namespace of a NIC is removed, the kernel moves the NIC back a little later. It keeps its MTU, and the XDP
/// program of a killed agent.
pub(crate) fn move_nic(LinkEnd { namespace, interface: link }: LinkEnd<'_>, address: &str) {
    let is_it = |name: &OsStr| {
        let path = Path::new("/sys/class/net").join(name).join("address");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == address)
    };
    let name = wait_until("a NIC with that address", || {
        let links = fs::read_dir("/sys/class/net").unwrap().flatten();
        links.map(|link| link.file_name()).find(|name| is_it(name))
    });
    let name = name.to_str().unwrap();
    let _none_pinned = fs::remove_dir_all("/sys/fs/bpf/snisplit");
    ip(&["link", "set", name, "down", "mtu", "1500"]);
    ip(&["link", "set", name, "netns", namespace.name(), "name", link]);
}

/// Whether this kernel supports VLANs.
pub fn has_vlan() -> bool {
    let namespace = Namespace::new("v");
    let name = namespace.name();
    ip(&["-n", name, "link", "add", "trunk", "type", "veth"]);
    let mut add = Command::new("ip");
    add.args(["-n", name, "link", "add", "link", "trunk", "type", "vlan", "id", "5"]);
    let done = add.output().unwrap();
    let why = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() || why.contains("Unknown device type"), "{why}");
    done.status.success()
}

/// Connects two hosts by a link that `create_link` creates, and gives the interfaces their addresses.
pub(crate) fn link_namespaces(
    hosts: [Host<'_>; 2],
    create_link: &mut impl FnMut([LinkEnd<'_>; 2]),
) {
    let [left, right] = &hosts;
    let (left_name, right_name) = (format!("to-{:x}", right.id), format!("to-{:x}", left.id));
    create_link([
        LinkEnd { namespace: left.namespace, interface: &left_name },
        LinkEnd { namespace: right.namespace, interface: &right_name },
    ]);
    for (Host { namespace, v4, id }, link) in [(left, &left_name), (right, &right_name)] {
        let v6 = format!("fd91:{}::{}/64", id >> 12, id & 0xf);
        let name = namespace.name();
        ip(&["-n", name, "addr", "add", &format!("{v4}/24"), "dev", link]);
        if has_ipv6() {
            ip(&["-n", name, "addr", "add", &v6, "dev", link, "nodad"]);
        }
        ip(&["-n", name, "link", "set", link, "up"]);
    }
    if has_ipv6() {
        left.namespace.run(|| wait_for_ipv6(&left_name, (left.id & 0xf) as u8));
        right.namespace.run(|| wait_for_ipv6(&right_name, (right.id & 0xf) as u8));
    }
}

/// Whether this kernel supports IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
