//! Comparison of the PROXY header parser with an independent one, the crate `ppp`, on random and mutated
//! headers. The other parser must accept each accepted header, with the same addresses.

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use proptest::prelude::*;
use snisplit_common::proxy_protocol::{Header, ParseStatus, Version, encode, parse};

type Addresses = Option<(SocketAddr, SocketAddr)>;

/// Parses a header with the other parser. `None`: it is invalid. IPv4-mapped addresses become IPv4.
fn parse_with_oracle(bytes: &[u8]) -> Option<Addresses> {
    let canonical_pair = |source: SocketAddr, destination: SocketAddr| {
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        Some((canonical(source), canonical(destination)))
    };
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) => Some(match header.addresses {
            v1::Addresses::Unknown => None,
            v1::Addresses::Tcp4(a) => canonical_pair(
                (a.source_address, a.source_port).into(),
                (a.destination_address, a.destination_port).into(),
            ),
            v1::Addresses::Tcp6(a) => canonical_pair(
                (a.source_address, a.source_port).into(),
                (a.destination_address, a.destination_port).into(),
            ),
        }),
        HeaderResult::V2(Ok(header)) if header.command == v2::Command::Local => Some(None),
        HeaderResult::V2(Ok(header)) => Some(match header.addresses {
            v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
            v2::Addresses::IPv4(a) => canonical_pair(
                (a.source_address, a.source_port).into(),
                (a.destination_address, a.destination_port).into(),
            ),
            v2::Addresses::IPv6(a) => canonical_pair(
                (a.source_address, a.source_port).into(),
                (a.destination_address, a.destination_port).into(),
            ),
        }),
        HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => None,
    }
}

fn header() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![Just(Version::V1), Just(Version::V2)];
    let address = any::<SocketAddr>();
    let name = prop::option::of("[a-z]{1,20}\\.test");
    let text = "PROXY (TCP4|TCP6|UNKNOWN|UDP4) [0-9a-f.:]{1,20} [0-9a-f.:]{1,20} [0-9]{1,6} [0-9]{1,6}\r\n";
    let ports = "PROXY TCP4 1.2.3.4 5.6.7.8 [+0-9]{1,6} [+0-9]{1,6}\r\n";
    prop_oneof![
        (version, address.clone(), address, name).prop_map(|(version, a, b, name)| {
            encode(version, a, b, name.as_deref(), Some(b"h2"))
        }),
        text.prop_map(String::into_bytes),
        ports.prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..60).prop_map(|tail| [
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0",
            &tail[..]
        ]
        .concat()),
        prop::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn the_oracle_accepts_whatever_snisplit_accepts(
        bytes in header(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        behind in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut bytes = [bytes, behind].concat();
        for (place, byte) in changes {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        match parse(&bytes) {
            ParseStatus::Complete(Header { len, addresses }) => {
                prop_assert!(len <= bytes.len());
                if bytes.starts_with(b"PROXY UNKNOWN") {
                    // A receiver must ignore text after `UNKNOWN` (§2.1); the other parser reads it.
                    prop_assert_eq!(addresses, None);
                    return Ok(());
                }
                prop_assert_eq!(parse_with_oracle(&bytes[..len]), Some(addresses), "{:02x?}", &bytes[..len]);
            }
            ParseStatus::Incomplete { needed } => prop_assert!(needed > bytes.len()),
            ParseStatus::Invalid(_) => {}
        }
    }
}
