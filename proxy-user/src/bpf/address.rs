//! Addresses as they stand in maps: IPv4 as `::ffff:a.b.c.d`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use snisplit_common::abi::packet::Tuple;

/// An address and its port.
pub(crate) fn socket_addr(octets: [u8; 16], port: u16) -> SocketAddr {
    (Ipv6Addr::from(octets).to_canonical(), port).into()
}

/// The tuple by which packets from `peer` to us arrive.
pub(crate) fn ingress_tuple(peer: SocketAddr, local: SocketAddr) -> Tuple {
    Tuple {
        source: mapped_octets(peer.ip()),
        destination: mapped_octets(local.ip()),
        source_port: peer.port(),
        destination_port: local.port(),
    }
}

/// The peer, and this host.
pub(crate) fn peer_and_local(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    (
        socket_addr(tuple.source, tuple.source_port),
        socket_addr(tuple.destination, tuple.destination_port),
    )
}

/// An address without its port.
pub(crate) fn mapped_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
