//! A network behind the back ends' namespace, which is the router to it. The router's link there has a smaller MTU than
//! the host in that network knows.

use crate::lab::Lab;
use crate::link::has_ipv6;
use crate::namespace::{Namespace, ip, wait_for_ipv6};

/// A host in that network, with the addresses 10.91.3.2 and fd91:3::2.
#[derive(Debug)]
pub struct FarNetwork(Namespace);

impl FarNetwork {
    /// Creates the network. `mtu` is that of the router's link.
    pub fn new(lab: &Lab, mtu: u16) -> Self {
        let far = Namespace::new("f");
        let [_, proxy, router] = lab.namespace_names();
        let ends = ["link", "add", "to-far", "type", "veth", "peer", "name", "to-router", "netns"];
        ip(&[&["-n", router][..], &ends, &[far.name()]].concat());
        ip(&["-n", router, "link", "set", "to-far", "up"]);
        ip(&["-n", far.name(), "link", "set", "to-router", "up"]);
        let v4 = ["10.91.3.0/24", "10.91.3.1", "10.91.3.2", "10.91.2.2"];
        let v6 = ["fd91:3::/64", "fd91:3::1", "fd91:3::2", "fd91:2::2"];
        for [net, gateway, host, next] in [v4, v6].into_iter().take(1 + usize::from(has_ipv6())) {
            let (family, bits) = net.split_once('/').unwrap();
            let (family, nodad): (_, &[&str]) =
                if family.contains(':') { ("-6", &["nodad"]) } else { ("-4", &[]) };
            for (namespace, address, link) in
                [(router, gateway, "to-far"), (far.name(), host, "to-router")]
            {
                let address = format!("{address}/{bits}");
                let args = ["-n", namespace, "addr", "add", &address, "dev", link];
                ip(&[&args[..], nodad].concat());
            }
            ip(&["-n", proxy, family, "route", "add", net, "via", next]);
            ip(&["-n", far.name(), family, "route", "add", "default", "via", gateway]);
        }
        if has_ipv6() {
            far.run(|| wait_for_ipv6("to-router", 2));
            lab.in_backends(|| wait_for_ipv6("to-far", 1));
        }
        ip(&["-n", router, "link", "set", "to-far", "mtu", &mtu.to_string()]);
        lab.in_backends(|| {
            for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let _no_ipv6 = std::fs::write(format!("/proc/sys/net/{switch}"), "1");
            }
        });
        Self(far)
    }

    /// Calls `act` in the host's namespace.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.0.run(act)
    }
}
