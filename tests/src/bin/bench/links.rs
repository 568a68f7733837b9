//! Ways between client and back end that are no proxy, and what a proxy leaves of one.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use snisplit_tests::agent::binary_path;
use snisplit_tests::lab::Lab;
use snisplit_tests::peer::write_file;

/// The back ends, on a cable from the client of its own.
pub(crate) const DIRECT_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 91, 3, 2);

/// The proxy towards the back ends, for translated packets only: from the address of its sockets a
/// port would meet what the back end remembers of another clock (TIME_WAIT, RFC 7323 §5).
const NAT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 91, 2, 9);

/// Lays that cable.
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

/// Has the proxy's kernel forward what comes to a port of its, both addresses translated, until it is
/// dropped: connection tracking would cost the next candidate something.
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
            // 20,000 connections a second would fill the table, whose entries stay for two minutes.
            fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1").unwrap();
        });
        Self { namespace: lab.namespace_names()[1].to_owned() }
    }
}

impl Drop for NatRules {
    fn drop(&mut self) {
        let words = ["netns", "exec", &self.namespace, "nft", "delete", "table", "ip", "sp"];
        run(Command::new("ip").args(words));
    }
}

/// The programs of the packet engine, which stay without their agent and see all that comes in: on its way the
/// next candidate would pay for them. Dropping this takes them out.
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
        // Not by `ip netns exec`, which covers the file system of the pins with another /sys.
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

/// That no program stands in the way of the next candidate (of those at tcx, which is where they are here).
pub(crate) fn assert_no_programs(lab: &Lab) {
    for (interface, hook) in
        ["to-1002", "to-2002"].into_iter().flat_map(|one| TCX_HOOKS.map(|hook| (one, hook)))
    {
        let found =
            lab.in_proxy(|| SchedClassifier::query_tcx(interface, hook).map(|(_, all)| all));
        assert!(found.unwrap().is_empty(), "a program was left at {interface}");
    }
}

const TCX_HOOKS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

pub(crate) fn ip(words: &str) {
    run(Command::new("ip").args(words.split(' ')));
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
