//! Three namespaces in a row: client | proxy | back ends. Gone when the `Lab` is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::impair::{self, Cable, Fates, Impairment};
use crate::line::{End, has_ipv6, join, nic, veth, vlan};
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
    cables: Vec<Cable>,
    client: Namespace,
    proxy: Namespace,
    backends: Namespace,
    folder: TempDir,
}

impl Lab {
    /// Builds the namespaces and joins them.
    pub fn new() -> Self {
        Self::joined(veth)
    }

    /// The same with lines in VLANs instead (802.1Q), if they are to be: towards the client, towards the back
    /// ends.
    pub fn tagged(which: [bool; 2]) -> Self {
        let mut which = which.into_iter();
        Self::joined(|ends| if which.next() == Some(true) { vlan(ends) } else { veth(ends) })
    }

    /// The same with bad lines instead of good ones.
    pub fn impaired(how: Impairment) -> Self {
        Self::partly_impaired([true; 2], how)
    }

    /// The same for some of its lines: towards the client, towards the back ends. What goes from a good one
    /// to one like this has to get its checksum on the way.
    pub fn partly_impaired(which: [bool; 2], how: Impairment) -> Self {
        let (mut which, mut cables) = (which.into_iter(), Vec::new());
        let mut lab = Self::joined(|ends| {
            if which.next() != Some(true) {
                return veth(ends);
            }
            let ends = ends.map(|end| end.namespace.run(|| impair::end(end.link)));
            cables.push(Cable::new(ends, how));
        });
        lab.cables = cables;
        lab
    }

    /// The same with lines whose ends have native XDP: TAP devices, or the NICs that `SNISPLIT_NICS` has the
    /// addresses of, of which two and two are joined.
    pub fn with_drivers() -> Self {
        let Ok(nics) = std::env::var(NICS) else {
            return Self::impaired(Impairment::GOOD);
        };
        let mut nics = nics.split(',');
        Self::joined(|ends| ends.into_iter().for_each(|end| nic(end, nics.next().unwrap())))
    }

    fn joined(mut lay: impl FnMut([End<'_>; 2])) -> Self {
        let lab = Self {
            cables: Vec::new(),
            client: Namespace::new("c"),
            proxy: Namespace::new("p"),
            backends: Namespace::new("b"),
            folder: TempDir::with_prefix("sp-").unwrap(),
        };
        let Self { client, proxy, backends, .. } = &lab;
        join((client, CLIENT, 0x1002), (proxy, PROXY, 0x1001), &mut lay);
        let towards_backends = (proxy, Ipv4Addr::new(10, 91, 2, 1), 0x2001);
        join(towards_backends, (backends, BACKEND, 0x2002), &mut lay);
        lab
    }

    /// What the bad lines did so far: towards the client, towards the back ends.
    pub fn fates(&self) -> impl Iterator<Item = &Fates> {
        self.cables.iter().map(Cable::fates)
    }

    /// Makes the proxy the router between client and back ends, whose packets it forwards.
    pub fn route_through(&self) {
        ip(&["-n", self.client.name(), "route", "add", "default", "via", &PROXY.to_string()]);
        ip(&["-n", self.backends.name(), "route", "add", "default", "via", "10.91.2.1"]);
        if has_ipv6() {
            for (namespace, router) in [(&self.client, "fd91:1::1"), (&self.backends, "fd91:2::1")]
            {
                ip(&["-n", namespace.name(), "-6", "route", "add", "default", "via", router]);
            }
        }
        self.proxy(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let _no_ipv6 = std::fs::write(format!("/proc/sys/net/{switch}"), "1");
            }
        });
    }

    /// Drops what these rules say, such as `in iifname "to-1002" drop`, and nothing that former ones
    /// said. `in` is before routing, `out` behind it.
    pub fn drop_at_proxy(&self, rules: &[&str]) {
        let chain = |name: &str, hook: &str| {
            let own = rules.iter().filter_map(|rule| rule.strip_prefix(name));
            let own: String = own.map(|rule| rule.replace(" drop", " counter drop;")).collect();
            format!("chain {name} {{ type filter hook {hook} priority raw; {own} }}")
        };
        let (inward, outward) = (chain("in", "prerouting"), chain("out", "output"));
        let table = format!("table inet spcut {{\n{inward}\n{outward}\n}}");
        self.proxy(|| nft(&format!("table inet spcut\ndelete table inet spcut\n{table}")));
    }

    /// How many packets were dropped by a chain's rules so far.
    pub fn dropped(&self, chain: &str) -> u64 {
        let mut list = Command::new("nft");
        list.args(["-j", "list", "chain", "inet", "spcut", chain]);
        let done = self.proxy(|| list.output()).unwrap();
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
    pub fn cable(&self, is_in: bool) {
        let state = if is_in { "up" } else { "down" };
        ip(&["-n", self.backends.name(), "link", "set", "to-2001", state]);
    }

    /// Runs something as the client. Sockets and children made there stay there.
    pub fn client<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.client.run(act)
    }

    /// Runs something where the agent is.
    pub fn proxy<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.proxy.run(act)
    }

    /// Runs something where the back ends are.
    pub fn backends<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.backends.run(act)
    }

    /// Runs something in the namespace of this name.
    pub fn inside<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let all = [&self.client, &self.proxy, &self.backends];
        all.into_iter().find(|one| one.name() == name).expect("one of `names`").run(act)
    }

    /// A folder of this lab's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Names of the namespaces: client, proxy, back ends.
    pub fn names(&self) -> [&str; 3] {
        [self.client.name(), self.proxy.name(), self.backends.name()]
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// Has the addresses of NICs that lines may be made of.
const NICS: &str = "SNISPLIT_NICS";

/// Whether lines with drivers are made of NICs.
pub fn has_nics() -> bool {
    std::env::var_os(NICS).is_some()
}

/// The address of a back end on this port.
pub fn backend(port: u16) -> SocketAddr {
    (IpAddr::V4(BACKEND), port).into()
}

fn nft(rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, rules).unwrap();
    let done = Command::new("nft").arg("-f").arg(file.path()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
