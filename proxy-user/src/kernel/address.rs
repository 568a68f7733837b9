//! Addresses as they stand in maps: IPv4 as `::ffff:a.b.c.d`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use snisplit_common::abi::packet::Tuple;

/// An address and its port.
pub(crate) fn address(octets: [u8; 16], port: u16) -> SocketAddr {
    (Ipv6Addr::from(octets).to_canonical(), port).into()
}

/// The tuple by which packets from `peer` to us arrive.
pub(crate) fn tuple(peer: SocketAddr, us: SocketAddr) -> Tuple {
    Tuple {
        source: octets(peer.ip()),
        destination: octets(us.ip()),
        source_port: peer.port(),
        destination_port: us.port(),
    }
}

/// The peer, and this host.
pub(crate) fn addresses(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    (address(tuple.source, tuple.source_port), address(tuple.destination, tuple.destination_port))
}

/// An address without its port.
pub(crate) fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
