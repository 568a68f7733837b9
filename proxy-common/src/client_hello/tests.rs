use super::*;

/// ClientHello with these extensions. The other fields are constant.
fn client_hello_message(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let list: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [&kind.to_be_bytes(), &len16(data.len())[..], data].concat())
        .collect();
    body.extend(len16(list.len()));
    body.extend(list);
    let mut message = vec![1, 0];
    message.extend(len16(body.len()));
    message.extend(body);
    message
}

fn len16(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap().to_be_bytes()
}

fn into_records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &len16(part.len())[..], part].concat();
    message.chunks(size).flat_map(record).collect()
}

fn sni(name: &[u8]) -> Vec<u8> {
    let entry = [&[0], &len16(name.len())[..], name].concat();
    [&len16(entry.len())[..], &entry].concat()
}

fn parse_once(bytes: &[u8]) -> ParseStatus {
    ClientHelloParser::new(65_536).parse(bytes)
}

fn parse_complete(bytes: &[u8]) -> ClientHello {
    match parse_once(bytes) {
        ParseStatus::Complete(hello) => *hello,
        other @ (ParseStatus::Incomplete { .. } | ParseStatus::Invalid(_)) => panic!("{other:?}"),
    }
}

const ACME: &[u8] = b"\x00\x0b\x0aacme-tls/1";

#[test]
fn every_extension_is_extracted() {
    let bytes = into_records(
        &client_hello_message(&[
            (0x0a0a, b""),
            (0, &sni(b"A.Test")),
            (16, b"\x00\x0c\x02h2\x08http/1.1"),
            (43, b"\x06\x0a\x0a\x03\x04\x03\x03"),
            (42, b""),
            (0xfe0d, b"\x00"),
        ]),
        16_384,
    );
    let hello = parse_complete(&[&bytes[..], b"0-RTT data"].concat());
    assert_eq!(hello.sni, Sni::Name(ServerName::parse(b"a.test").unwrap()));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(hello.versions, [0x0a0a, 0x0304, 0x0303]);
    assert!(hello.early_data && hello.ech && !hello.is_acme_validation());
    assert_eq!((hello.wire_len, hello.records), (bytes.len(), 1));
}

#[test]
fn a_client_hello_without_extensions_is_accepted() {
    let mut plain = client_hello_message(&[]);
    plain.truncate(plain.len() - 2);
    plain[3] -= 2;
    let hello = parse_complete(&into_records(&plain, 100));
    assert_eq!((hello.sni, hello.versions), (Sni::Absent, vec![0x0303]));
}

#[test]
fn only_acme_tls_alone_is_a_validation() {
    let table: &[(&[u8], bool)] = &[
        (ACME, true),
        (b"\x00\x0b\x0aACME-TLS/1", false),
        (b"\x00\x0e\x02h2\x0aacme-tls/1", false),
        (b"\x00\x0e\x0aacme-tls/1\x02h2", false),
        (b"\x00\x03\x02h2", false),
    ];
    for (alpn, want) in table {
        let bytes = into_records(&client_hello_message(&[(16, alpn)]), 16_384);
        assert_eq!(parse_complete(&bytes).is_acme_validation(), *want, "{alpn:?}");
    }
}

/// What a client chooses the size of is not kept whole. Protocols that are not kept still count.
#[test]
fn only_the_first_protocols_are_kept() {
    let parse = |list: &[u8]| {
        let data = [&len16(list.len())[..], list].concat();
        parse_complete(&into_records(&client_hello_message(&[(16, &data)]), 16_384))
    };
    let many = parse(&b"\x02h2".repeat(10_000));
    assert_eq!((many.alpn.len(), many.alpn_omitted), (85, 9_915));
    assert!(many.alpn.iter().all(|protocol| protocol == b"h2"));
    let long = [&[255][..], &[b'x'; 255]].concat();
    let hello = parse(&[b"\x0aacme-tls/1", &long[..]].concat());
    assert_eq!((hello.alpn.len(), hello.alpn_omitted), (1, 1));
    assert!(!hello.is_acme_validation());
}

/// The result does not depend on the fragmentation. It appears at the last byte of the hello, and not before
/// the number of bytes that the parser has requested.
#[test]
fn every_prefix_of_every_fragmentation_is_incomplete() {
    let message = client_hello_message(&[(0, &sni(b"a.test")), (16, ACME), (21, &[0; 300])]);
    for size in [1, 2, 3, 7, 100, 16_384] {
        let bytes = into_records(&message, size);
        let want = parse_complete(&bytes);
        assert_eq!((want.wire_len, want.records), (bytes.len(), message.len().div_ceil(size)));
        assert!(want.is_acme_validation());
        let mut incremental = ClientHelloParser::new(65_536);
        let mut need = 1;
        for end in 0..bytes.len() {
            let step = incremental.parse(&bytes[..end]);
            let ParseStatus::Incomplete { needed: next } = step else {
                panic!("{end} of {size}: {step:?}")
            };
            assert!(next > end && next <= bytes.len() && next >= need, "{end} -> {next}");
            assert_eq!(
                parse_once(&bytes[..end]),
                step,
                "the result must not depend on earlier calls"
            );
            need = next;
        }
        assert_eq!(incremental.parse(&bytes), ParseStatus::Complete(Box::new(want)));
    }
}

#[test]
fn the_limit_counts_the_message_whatever_its_records() {
    let with_len = |total: usize| client_hello_message(&[(21, &vec![0; total - 43 - 4])]);
    for size in [64, 16_384] {
        let bytes = into_records(&with_len(5_000), size);
        assert!(matches!(ClientHelloParser::new(5_000).parse(&bytes), ParseStatus::Complete(_)));
        assert_eq!(
            ClientHelloParser::new(4_999).parse(&bytes),
            ParseStatus::Invalid(ClientHelloError::TooLong)
        );
        let early = &into_records(&with_len(5_000), 1)[..24];
        assert_eq!(
            ClientHelloParser::new(4_999).parse(early),
            ParseStatus::Invalid(ClientHelloError::TooLong)
        );
    }
}

/// A hello of up to 4 KiB on the wire may have any records; behind that, they must have 64 bytes on average.
#[test]
fn absurdly_many_records_are_rejected() {
    let parse = |len: usize, size: usize| {
        let message = client_hello_message(&[(21, &vec![0; len - 43 - 4])]);
        ClientHelloParser::new(65_536).parse(&into_records(&message, size))
    };
    assert!(matches!(parse(678, 1), ParseStatus::Complete(_)), "4,092 bytes on the wire");
    assert_eq!(parse(684, 1), ParseStatus::Invalid(ClientHelloError::TooManyRecords));
    assert_eq!(parse(8_192, 63), ParseStatus::Invalid(ClientHelloError::TooManyRecords));
    assert!(matches!(parse(8_192, 64), ParseStatus::Complete(_)));
}

#[test]
fn invalid_input_is_rejected_at_once() {
    let good = client_hello_message(&[]);
    let duplicate = client_hello_message(&[(0, &sni(b"a.test")), (5, b""), (0, &sni(b"b.test"))]);
    let two_names = [sni(b"a.test"), sni(b"b.test")].map(|list| list[2..].to_vec()).concat();
    let two_names = [&len16(two_names.len())[..], &two_names].concat();
    let bad = |extensions: &[(u16, &[u8])]| into_records(&client_hello_message(extensions), 16_384);
    let table: Vec<(Vec<u8>, ClientHelloError)> = vec![
        (b"G".to_vec(), ClientHelloError::NotTls),
        (b"\x80\x2e\x01".to_vec(), ClientHelloError::NotTls),
        (b"\x16\x02".to_vec(), ClientHelloError::NotTls),
        (b"\x15\x03\x01\x00\x02\x02\x28".to_vec(), ClientHelloError::NotTls),
        (b"\x16\x03\x01\x40\x01".to_vec(), ClientHelloError::InvalidRecordLength),
        (b"\x16\x03\x01\x00\x00".to_vec(), ClientHelloError::InvalidRecordLength),
        (b"\x16\x03\x01\x00\x05\x02".to_vec(), ClientHelloError::UnexpectedMessage),
        ([&into_records(&good, 10)[..15], b"\x17"].concat(), ClientHelloError::UnexpectedMessage),
        (into_records(&duplicate, 16_384), ClientHelloError::DuplicateExtension),
        (bad(&[(0, &two_names)]), ClientHelloError::Malformed),
        (bad(&[(0, b"\x00\x00")]), ClientHelloError::Malformed),
        (bad(&[(0, b"\x00\x09\x00\x00\x06a.test!")]), ClientHelloError::Malformed),
        (bad(&[(16, b"\x00\x00")]), ClientHelloError::Malformed),
        (bad(&[(16, b"\x00\x01\x00")]), ClientHelloError::Malformed),
        (bad(&[(43, b"\x03\x03\x04\x03")]), ClientHelloError::Malformed),
        (into_records(&[1, 0, 0, 2, 3, 3], 16_384), ClientHelloError::Malformed),
    ];
    for (bytes, want) in table {
        assert_eq!(parse_once(&bytes), ParseStatus::Invalid(want), "{bytes:x?}");
    }
}

#[test]
fn an_invalid_server_name_is_not_repaired() {
    for name in [&b"a.test."[..], b"", b"10.0.0.1", b"a.test\0.evil.test"] {
        let bytes = into_records(&client_hello_message(&[(0, &sni(name))]), 16_384);
        assert!(matches!(parse_complete(&bytes).sni, Sni::Invalid(_)), "{name:?}");
    }
}
