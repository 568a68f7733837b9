//! Addresses in map entries: IPv4 as `::ffff:a.b.c.d`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use snisplit_common::abi::packet::Tuple;

/// Returns the address that an entry holds as 16 bytes and a port.
pub(crate) fn socket_addr(octets: [u8; 16], port: u16) -> SocketAddr {
    (Ipv6Addr::from(octets).to_canonical(), port).into()
}

/// Returns the tuple of packets that arrive at `local` from `peer`.
pub(crate) fn ingress_tuple(peer: SocketAddr, local: SocketAddr) -> Tuple {
    Tuple {
        source: mapped_octets(peer.ip()),
        destination: mapped_octets(local.ip()),
        source_port: peer.port(),
        destination_port: local.port(),
    }
}

/// Returns the peer and the local address of a tuple.
pub(crate) fn peer_and_local(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    (
        socket_addr(tuple.source, tuple.source_port),
        socket_addr(tuple.destination, tuple.destination_port),
    )
}

/// Returns the 16 bytes of an IP address in an entry.
pub(crate) fn mapped_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
