//! Paths between client and back end without a proxy, and programs that a proxy leaves at interfaces.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use snisplit_tests::agent::binary_path;
use snisplit_tests::lab::Lab;
use snisplit_tests::peer::write_file;

/// Address of the back ends on the direct link.
pub(crate) const DIRECT_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 91, 3, 2);

/// Source address of translated packets. With the address of the proxy's sockets, a port could be in TIME_WAIT at the back
/// end with timestamps of another clock (RFC 7323 §5).
const NAT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 91, 2, 9);

/// Creates the direct link.
pub(crate) fn add_direct_link(lab: &Lab) {
    let [client, proxy, backends] = lab.namespace_names();
    ip(&format!("-n {proxy} addr add {NAT_ADDRESS}/24 dev to-2002"));
    ip(&format!("-n {client} link add direct type veth peer name direct netns {backends}"));
    for (namespace, address) in [(client, Ipv4Addr::new(10, 91, 3, 1)), (backends, DIRECT_BACKEND)]
    {
        ip(&format!("-n {namespace} addr add {address}/24 dev direct"));
        ip(&format!("-n {namespace} link set direct up"));
    }
}

/// Rules by which the proxy's kernel forwards packets of one port and translates both addresses. Dropping it removes them,
/// because connection tracking would slow the next candidate down.
pub(crate) struct NatRules {
    namespace: String,
}

impl NatRules {
    pub(crate) fn start(lab: &Lab, port: u16, to: SocketAddr) -> Self {
        let table = format!(
            "table ip sp {{\n\
             chain in {{\n type nat hook prerouting priority dstnat;\n tcp dport {port} dnat to {to};\n}}\n\
             chain out {{\n type nat hook postrouting priority srcnat;\n tcp dport {} snat to {NAT_ADDRESS};\n}}\n}}\n",
            to.port()
        );
        let file = write_file(lab, "nat.nft", &table);
        lab.in_proxy(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            run(Command::new("nft").arg("-f").arg(file));
            // Entries stay for two minutes by default, and 20,000 connections per second would fill the table.
            fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1").unwrap();
        });
        Self { namespace: lab.namespace_names()[1].to_owned() }
    }
}

impl Drop for NatRules {
    fn drop(&mut self) {
        let args = ["netns", "exec", &self.namespace, "nft", "delete", "table", "ip", "sp"];
        run(Command::new("ip").args(args));
    }
}

/// Programs of the packet engine, which outlive their agent and would slow the next candidate down. Dropping it removes
/// them.
pub(crate) struct PacketProgramsGuard {
    namespace: String,
}

impl PacketProgramsGuard {
    pub(crate) fn new(lab: &Lab) -> Self {
        Self { namespace: lab.namespace_names()[1].to_owned() }
    }
}

impl Drop for PacketProgramsGuard {
    fn drop(&mut self) {
        // `ip netns exec` would mount another /sys, without the pins.
        let inside = format!("--net=/run/netns/{}", self.namespace);
        let mut purge = Command::new("nsenter");
        run(purge.arg(inside).arg(binary_path()).args([
            "flows",
            "purge",
            "--instance",
            &self.namespace,
        ]));
    }
}

/// Asserts that no program of another candidate is attached at tcx, where the packet engine attaches its programs here.
pub(crate) fn assert_no_programs(lab: &Lab) {
    for (interface, hook) in
        ["to-1002", "to-2002"].into_iter().flat_map(|one| TCX_HOOKS.map(|hook| (one, hook)))
    {
        let found =
            lab.in_proxy(|| SchedClassifier::query_tcx(interface, hook).map(|(_, all)| all));
        assert!(found.unwrap().is_empty(), "a program is attached to {interface}");
    }
}

const TCX_HOOKS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// Runs ip(8) with these arguments, separated by blanks.
pub(crate) fn ip(args: &str) {
    run(Command::new("ip").args(args.split(' ')));
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
