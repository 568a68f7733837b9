//! Ports of back ends and clients, and the port ranges of their hosts.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use snisplit_tests::lab::Lab;

/// Port of the back end that serves the loads.
pub(crate) const BACKEND_PORT: u16 = 8001;

/// Source ports of the client. connect(2) searches half of them one by one (`__inet_hash_connect`), and thousands are in
/// use or in TIME_WAIT. With the default of 28,000 ports, the benchmark would measure that search.
const CLIENT_PORTS: &str = "10240 65535";
/// Source ports of the proxy for all candidates but the packet engine. The ranges do not overlap, for connect(2) searches
/// reserved ports too.
const PROXY_PORTS: &str = "32768 65535";
/// Source ports of the packet engine.
pub(crate) const PACKET_ENGINE_PORTS: &str = "10240-32767";

/// Sets the port ranges, and has connect(2) reuse ports in TIME_WAIT.
pub(crate) fn widen_port_ranges(lab: &Lab) {
    let set = |range: &str| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap();
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
    };
    lab.in_client(|| set(CLIENT_PORTS));
    lab.in_proxy(|| set(PROXY_PORTS));
}

/// Listens as a back end, on all its addresses.
pub(crate) fn listen(lab: &Lab, port: u16) -> TcpListener {
    lab.in_backends(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap()
}
