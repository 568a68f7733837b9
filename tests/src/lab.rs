//! Three namespaces in a row: client | proxy | back ends. Gone when the `Lab` is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::impaired_link::{self, ImpairedLink, Impairment, LinkStats};
use crate::link::{LinkEnd, create_veth, create_vlan, has_ipv6, link_namespaces, move_nic};
use crate::namespace::{Namespace, ip};

/// The proxy, as the client sees it.
pub const PROXY: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 1);
/// The proxy's IPv6 address towards the client.
pub const PROXY6: Ipv6Addr = Ipv6Addr::new(0xfd91, 1, 0, 0, 0, 0, 0, 1);
/// The client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 91, 1, 2);
/// The back ends, told apart by port.
pub const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 91, 2, 2);
/// The back ends over IPv6.
pub const BACKEND6: Ipv6Addr = Ipv6Addr::new(0xfd91, 2, 0, 0, 0, 0, 0, 2);

/// The topology and a folder for whatever the peers write.
#[derive(Debug)]
pub struct Lab {
    impaired_links: Vec<ImpairedLink>,
    client: Namespace,
    proxy: Namespace,
    backends: Namespace,
    dir: TempDir,
}

impl Lab {
    /// Builds the namespaces and joins them.
    pub fn new() -> Self {
        Self::with_links(create_veth)
    }

    /// The same with lines in VLANs instead (802.1Q), if they are to be: towards the client, towards the back
    /// ends.
    pub fn with_vlans(selected: [bool; 2]) -> Self {
        let mut which = selected.into_iter();
        Self::with_links(|ends| {
            if which.next() == Some(true) { create_vlan(ends) } else { create_veth(ends) }
        })
    }

    /// The same with bad lines instead of good ones.
    pub fn impaired(impairment: Impairment) -> Self {
        Self::partly_impaired([true; 2], impairment)
    }

    /// The same for some of its lines: towards the client, towards the back ends. What goes from a good one
    /// to one like this has to get its checksum on the way.
    pub fn partly_impaired(which: [bool; 2], impairment: Impairment) -> Self {
        let (mut which, mut cables) = (which.into_iter(), Vec::new());
        let mut lab = Self::with_links(|ends| {
            if which.next() != Some(true) {
                return create_veth(ends);
            }
            let ends =
                ends.map(|end| end.namespace.run(|| impaired_link::create_tap(end.interface)));
            cables.push(ImpairedLink::new(ends, impairment));
        });
        lab.impaired_links = cables;
        lab
    }

    /// The same with lines whose ends have native XDP: TAP devices, or the NICs that `SNISPLIT_NICS` has the
    /// addresses of, of which two and two are joined.
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
        link_namespaces((client, CLIENT, 0x1002), (proxy, PROXY, 0x1001), &mut create_link);
        let backend_side = (proxy, Ipv4Addr::new(10, 91, 2, 1), 0x2001);
        link_namespaces(backend_side, (backends, BACKEND, 0x2002), &mut create_link);
        lab
    }

    /// What the bad lines did so far: towards the client, towards the back ends.
    pub fn link_stats(&self) -> impl Iterator<Item = &LinkStats> {
        self.impaired_links.iter().map(ImpairedLink::stats)
    }

    /// Makes the proxy the router between client and back ends, whose packets it forwards.
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

    /// Drops what these rules say, such as `in iifname "to-1002" drop`, and nothing that former ones
    /// said. `in` is before routing, `out` behind it.
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

    /// How many packets were dropped by a chain's rules so far.
    pub fn dropped_packets(&self, chain: &str) -> u64 {
        let mut list = Command::new("nft");
        list.args(["-j", "list", "chain", "inet", "spcut", chain]);
        let done = self.in_proxy(|| list.output()).unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let counts = text.split("\"packets\": ").skip(1);
        counts.filter_map(|rest| rest.split([',', '}']).next()?.trim().parse::<u64>().ok()).sum()
    }

    /// Gives the back ends one more address.
    pub fn add_backend_address(&self, address: IpAddr) {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        let link = ["dev", "to-2001"];
        let address = format!("{address}/{prefix}");
        ip(&[&["-n", self.backends.name(), "addr", "add", &address][..], &link].concat());
    }

    /// Takes the cable out, or puts it back in, between the proxy and the back ends.
    pub fn set_backend_link(&self, is_up: bool) {
        let state = if is_up { "up" } else { "down" };
        ip(&["-n", self.backends.name(), "link", "set", "to-2001", state]);
    }

    /// Runs something as the client. Sockets and children made there stay there.
    pub fn in_client<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.client.run(act)
    }

    /// Runs something where the agent is.
    pub fn in_proxy<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.proxy.run(act)
    }

    /// Runs something where the back ends are.
    pub fn in_backends<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.backends.run(act)
    }

    /// Runs something in the namespace of this name.
    pub fn in_namespace<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let all = [&self.client, &self.proxy, &self.backends];
        all.into_iter().find(|one| one.name() == name).expect("one of `names`").run(act)
    }

    /// A folder of this lab's own.
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

/// Has the addresses of NICs that lines may be made of.
const NICS_ENV: &str = "SNISPLIT_NICS";

/// Whether lines with drivers are made of NICs.
pub fn uses_nics() -> bool {
    std::env::var_os(NICS_ENV).is_some()
}

/// The address of a back end on this port.
pub fn backend(port: u16) -> SocketAddr {
    (IpAddr::V4(BACKEND), port).into()
}

fn load_nft_rules(rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, rules).unwrap();
    let done = Command::new("nft").arg("-f").arg(file.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
