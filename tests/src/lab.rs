//! Three network namespaces in a row: client, proxy, back ends. Dropping a [`Lab`] removes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::impaired_link::{self, ImpairedLink, Impairment, LinkStats};
use crate::link::{Host, LinkEnd, create_veth, create_vlan, has_ipv6, link_namespaces, move_nic};
use crate::namespace::{Namespace, ip};

/// Address of the proxy on the client's side.
pub const PROXY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
/// IPv6 address of the proxy on the client's side.
pub const PROXY6: Ipv6Addr = Ipv6Addr::new(0xfd91, 1, 0, 0, 0, 0, 0, 1);
/// Address of the client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 2);
/// Address of all back ends, which differ by port.
pub const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 91, 2, 2);
/// IPv6 address of all back ends.
pub const BACKEND6: Ipv6Addr = Ipv6Addr::new(0xfd91, 2, 0, 0, 0, 0, 0, 2);

/// The namespaces with their links, and a folder for files.
#[derive(Debug)]
pub struct Lab {
    impaired_links: Vec<ImpairedLink>,
    client: Namespace,
    proxy: Namespace,
    backends: Namespace,
    dir: TempDir,
}

impl Lab {
    /// Creates the namespaces, with veth links.
    pub fn new() -> Self {
        Self::with_links(create_veth)
    }

    /// Creates the namespaces, with links in a VLAN (802.1Q) where `selected` is true: to the client, to the back ends.
    pub fn with_vlans(selected: [bool; 2]) -> Self {
        let mut selected = selected.into_iter();
        Self::with_links(|ends| {
            if selected.next() == Some(true) { create_vlan(ends) } else { create_veth(ends) }
        })
    }

    /// Creates the namespaces, with impaired links.
    pub fn impaired(impairment: Impairment) -> Self {
        Self::partly_impaired([true; 2], impairment)
    }

    /// Creates the namespaces, with impaired links where `selected` is true: to the client, to the back ends.
    ///
    /// A packet from a veth has a partial checksum, which the kernel finishes in front of an impaired link.
    pub fn partly_impaired(selected: [bool; 2], impairment: Impairment) -> Self {
        let (mut selected, mut impaired_links) = (selected.into_iter(), Vec::new());
        let mut lab = Self::with_links(|ends| {
            if selected.next() != Some(true) {
                return create_veth(ends);
            }
            let ends =
                ends.map(|end| end.namespace.run(|| impaired_link::create_tap(end.interface)));
            impaired_links.push(ImpairedLink::new(ends, impairment));
        });
        lab.impaired_links = impaired_links;
        lab
    }

    /// Creates the namespaces, with links whose ends have native XDP: TAP devices, or NICs. `SNISPLIT_NICS` has the
    /// Ethernet addresses of 4 NICs, of which two and two are connected.
    pub fn with_xdp_drivers() -> Self {
        let Ok(nics) = std::env::var(NICS_ENV) else {
            return Self::impaired(Impairment::NONE);
        };
        let mut nics = nics.split(',');
        Self::with_links(|ends| {
            ends.into_iter().for_each(|end| move_nic(end, nics.next().unwrap()))
        })
    }

    fn with_links(mut create_link: impl FnMut([LinkEnd<'_>; 2])) -> Self {
        let lab = Self {
            impaired_links: Vec::new(),
            client: Namespace::new("c"),
            proxy: Namespace::new("p"),
            backends: Namespace::new("b"),
            dir: TempDir::with_prefix("sp-").unwrap(),
        };
        let Self { client, proxy, backends, .. } = &lab;
        let host = |namespace, v4, id| Host { namespace, v4, id };
        let proxy_at_backends = Ipv4Addr::new(10, 91, 2, 1);
        let to_client = [host(client, CLIENT, 0x1002), host(proxy, PROXY, 0x1001)];
        let to_backends = [host(proxy, proxy_at_backends, 0x2001), host(backends, BACKEND, 0x2002)];
        link_namespaces(to_client, &mut create_link);
        link_namespaces(to_backends, &mut create_link);
        lab
    }

    /// Statistics of the impaired links: to the client, to the back ends.
    pub fn link_stats(&self) -> impl Iterator<Item = &LinkStats> {
        self.impaired_links.iter().map(ImpairedLink::stats)
    }

    /// Makes the proxy's host the router between client and back ends.
    pub fn route_via_proxy(&self) {
        ip(&["-n", self.client.name(), "route", "add", "default", "via", &PROXY.to_string()]);
        ip(&["-n", self.backends.name(), "route", "add", "default", "via", "10.91.2.1"]);
        if has_ipv6() {
            for (namespace, router) in [(&self.client, "fd91:1::1"), (&self.backends, "fd91:2::1")]
            {
                ip(&["-n", namespace.name(), "-6", "route", "add", "default", "via", router]);
            }
        }
        self.in_proxy(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let _no_ipv6 = std::fs::write(format!("/proc/sys/net/{switch}"), "1");
            }
        });
    }

    /// Replaces the rules by which the proxy's host drops packets, such as `in iifname "to-1002" drop`. `in` is the hook
    /// prerouting, `out` the hook output.
    pub fn set_drop_rules(&self, rules: &[&str]) {
        let chain = |name: &str, hook: &str| {
            let own = rules.iter().filter_map(|rule| rule.strip_prefix(name));
            let own: String = own.map(|rule| rule.replace(" drop", " counter drop;")).collect();
            format!("chain {name} {{ type filter hook {hook} priority raw; {own} }}")
        };
        let (inward, outward) = (chain("in", "prerouting"), chain("out", "output"));
        let table = format!("table inet spcut {{\n{inward}\n{outward}\n}}");
        self.in_proxy(|| {
            load_nft_rules(&format!("table inet spcut\ndelete table inet spcut\n{table}"))
        });
    }

    /// Number of packets that the rules of a chain have dropped so far.
    pub fn dropped_packets(&self, chain: &str) -> u64 {
        let mut list = Command::new("nft");
        list.args(["-j", "list", "chain", "inet", "spcut", chain]);
        let done = self.in_proxy(|| list.output()).unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let counts = text.split("\"packets\": ").skip(1);
        counts.filter_map(|rest| rest.split([',', '}']).next()?.trim().parse::<u64>().ok()).sum()
    }

    /// Adds an address to the back ends.
    pub fn add_backend_address(&self, address: IpAddr) {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        let link = ["dev", "to-2001"];
        let address = format!("{address}/{prefix}");
        ip(&[&["-n", self.backends.name(), "addr", "add", &address][..], &link].concat());
    }

    /// Sets the link between the proxy and the back ends up or down.
    pub fn set_backend_link(&self, is_up: bool) {
        let state = if is_up { "up" } else { "down" };
        ip(&["-n", self.backends.name(), "link", "set", "to-2001", state]);
    }

    /// Calls `act` in the client's namespace. Sockets and processes that it creates stay there.
    pub fn in_client<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.client.run(act)
    }

    /// Calls `act` in the proxy's namespace.
    pub fn in_proxy<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.proxy.run(act)
    }

    /// Calls `act` in the back ends' namespace.
    pub fn in_backends<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.backends.run(act)
    }

    /// Calls `act` in the namespace with this name.
    pub fn in_namespace<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let all = [&self.client, &self.proxy, &self.backends];
        all.into_iter()
            .find(|one| one.name() == name)
            .expect("a name of `namespace_names`")
            .run(act)
    }

    /// Folder for files of this lab.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Names of the namespaces: client, proxy, back ends.
    pub fn namespace_names(&self) -> [&str; 3] {
        [self.client.name(), self.proxy.name(), self.backends.name()]
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// Variable with the Ethernet addresses of the NICs for [`Lab::with_xdp_drivers`].
const NICS_ENV: &str = "SNISPLIT_NICS";

/// Whether [`Lab::with_xdp_drivers`] uses NICs.
pub fn uses_nics() -> bool {
    std::env::var_os(NICS_ENV).is_some()
}

/// Address of the back end on this port.
pub fn backend(port: u16) -> SocketAddr {
    (IpAddr::V4(BACKEND), port).into()
}

fn load_nft_rules(rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, rules).unwrap();
    let done = Command::new("nft").arg("-f").arg(file.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
