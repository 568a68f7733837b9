use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn an_encoded_header_parses_back_from_every_prefix() {
    for (source, destination) in [
        ("10.0.0.1:40000", "10.0.0.2:443"),
        ("[fd00::1]:1", "[fd00::2]:65535"),
        ("[::ffff:10.0.0.1]:40000", "10.0.0.2:443"),
    ] {
        let (source, destination) = (address(source), address(destination));
        for version in [Version::V1, Version::V2] {
            let name = Some("a.test");
            let mut bytes = encode(version, source, destination, name, Some(b"h2"));
            let len = bytes.len();
            let addresses = Some((canonical(source), canonical(destination)));
            bytes.extend(b"\x16\x03\x01");
            for end in len..bytes.len() {
                let want = ParseStatus::Complete(Header { len, addresses });
                assert_eq!(parse(&bytes[..end]), want, "{version:?}");
            }
            for end in 0..len {
                let step = parse(&bytes[..end]);
                let ParseStatus::Incomplete { needed: need } = step else {
                    panic!("{step:?} at {end}")
                };
                assert!(need > end && need <= len);
            }
        }
    }
}

#[test]
fn local_and_unknown_carry_no_addresses() {
    let local = [V2_SIGNATURE, &[0x20, 0, 0, 0]].concat();
    for bytes in [&local[..], b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 what 1 2\r\n"] {
        let header = Header { len: bytes.len(), addresses: None };
        assert_eq!(parse(bytes), ParseStatus::Complete(header));
    }
}

#[test]
fn invalid_headers_are_rejected() {
    let good = encode(Version::V2, address("1.1.1.1:1"), address("2.2.2.2:2"), None, None);
    let mut flipped = good.clone();
    flipped[17] ^= 1;
    let datagram = [V2_SIGNATURE, &[0x21, 0x12, 0, 12], &[0; 12]].concat();
    let long = [V2_SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
    let endless = [V1_SIGNATURE, &[b'x'; 200]].concat();
    let rows: [(&[u8], HeaderError); 12] = [
        (b"\x16\x03\x01", HeaderError::Missing),
        (b"PROXZ", HeaderError::Missing),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", HeaderError::Malformed),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 99999\r\n", HeaderError::Malformed),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 000 1\r\n", HeaderError::Malformed),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 01\r\n", HeaderError::Malformed),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 +1\r\n", HeaderError::Malformed),
        (b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", HeaderError::Malformed),
        (&endless, HeaderError::Malformed),
        (&datagram, HeaderError::Malformed),
        (&long, HeaderError::TooLong),
        (&flipped, HeaderError::Checksum),
    ];
    for (bytes, want) in rows {
        assert_eq!(parse(bytes), ParseStatus::Invalid(want), "{bytes:x?}");
    }
}
