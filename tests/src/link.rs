//! Lines between namespaces.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use crate::namespace::{Namespace, ip, wait_for_ipv6};
use crate::wait::wait_until;

/// Where a link ends.
pub(crate) struct LinkEnd<'n> {
    pub(crate) namespace: &'n Namespace,
    pub(crate) interface: &'n str,
}

/// A good line.
pub(crate) fn create_veth([left, right]: [LinkEnd<'_>; 2]) {
    let peer = ["type", "veth", "peer", "name", right.interface, "netns", right.namespace.name()];
    ip(&[&["-n", left.namespace.name(), "link", "add", left.interface][..], &peer].concat());
}

/// A good line whose links put a tag on what they send by it, and take off what they receive with that tag.
/// No two lines have the same one.
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

/// An end that is a NIC, known by its address. When its namespace goes, the kernel takes it back here, a
/// little later, with its MTU and with what a killed agent has left in its driver.
pub(crate) fn move_nic(LinkEnd { namespace, interface: link }: LinkEnd<'_>, address: &str) {
    let is_it = |name: &OsStr| {
        let path = Path::new("/sys/class/net").join(name).join("address");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == address)
    };
    let name = wait_until("a NIC of that address", || {
        let links = fs::read_dir("/sys/class/net").unwrap().flatten();
        links.map(|link| link.file_name()).find(|name| is_it(name))
    });
    let name = name.to_str().unwrap();
    let _none_left = fs::remove_dir_all("/sys/fs/bpf/snisplit");
    ip(&["link", "set", name, "down", "mtu", "1500"]);
    ip(&["link", "set", name, "netns", namespace.name(), "name", link]);
}

/// Whether this kernel has VLANs.
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

/// A link, which `lay` lays; `number` is what tells the ends' IPv6 addresses apart.
pub(crate) fn link_namespaces(
    left: (&Namespace, Ipv4Addr, u16),
    right: (&Namespace, Ipv4Addr, u16),
    create_link: &mut impl FnMut([LinkEnd<'_>; 2]),
) {
    let (left_name, right_name) = (format!("to-{:x}", right.2), format!("to-{:x}", left.2));
    let end = |namespace, link| LinkEnd { namespace, interface: link };
    create_link([end(left.0, &left_name), end(right.0, &right_name)]);
    for ((namespace, v4, number), link) in [(left, &left_name), (right, &right_name)] {
        let v6 = format!("fd91:{}::{}/64", number >> 12, number & 0xf);
        let name = namespace.name();
        ip(&["-n", name, "addr", "add", &format!("{v4}/24"), "dev", link]);
        if has_ipv6() {
            ip(&["-n", name, "addr", "add", &v6, "dev", link, "nodad"]);
        }
        ip(&["-n", name, "link", "set", link, "up"]);
    }
    if has_ipv6() {
        left.0.run(|| wait_for_ipv6(&left_name, (left.2 & 0xf) as u8));
        right.0.run(|| wait_for_ipv6(&right_name, (right.2 & 0xf) as u8));
    }
}

/// Whether this kernel speaks IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
