use super::*;

/// A hello of our own making: only what the parser looks at varies.
fn message(extensions: &[(u16, &[u8])]) -> Vec<u8> {
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

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &len16(part.len())[..], part].concat();
    message.chunks(size).flat_map(record).collect()
}

fn sni(name: &[u8]) -> Vec<u8> {
    let entry = [&[0], &len16(name.len())[..], name].concat();
    [&len16(entry.len())[..], &entry].concat()
}

fn whole(bytes: &[u8]) -> Step {
    Reader::new(65_536).feed(bytes)
}

fn hello(bytes: &[u8]) -> Hello {
    match whole(bytes) {
        Step::Hello(hello) => *hello,
        other @ (Step::More { .. } | Step::Bad(_)) => panic!("{other:?}"),
    }
}

const ACME: &[u8] = b"\x00\x0b\x0aacme-tls/1";

#[test]
fn the_facts_of_a_hello() {
    let bytes = records(
        &message(&[
            (0x0a0a, b""),
            (0, &sni(b"A.Test")),
            (16, b"\x00\x0c\x02h2\x08http/1.1"),
            (43, b"\x06\x0a\x0a\x03\x04\x03\x03"),
            (42, b""),
            (0xfe0d, b"\x00"),
        ]),
        16_384,
    );
    let hello = hello(&[&bytes[..], b"0-RTT data"].concat());
    assert_eq!(hello.sni, Sni::Name(ServerName::parse(b"a.test").unwrap()));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(hello.versions, [0x0a0a, 0x0304, 0x0303]);
    assert!(hello.early_data && hello.ech && !hello.is_acme_validation());
    assert_eq!((hello.wire_len, hello.records), (bytes.len(), 1));
}

#[test]
fn a_hello_without_extensions_is_a_hello() {
    let mut plain = message(&[]);
    plain.truncate(plain.len() - 2);
    plain[3] -= 2;
    let hello = hello(&records(&plain, 100));
    assert_eq!((hello.sni, hello.versions), (Sni::Absent, vec![0x0303]));
}

#[test]
fn only_acme_and_nothing_else_is_a_validation() {
    let table: &[(&[u8], bool)] = &[
        (ACME, true),
        (b"\x00\x0b\x0aACME-TLS/1", false),
        (b"\x00\x0e\x02h2\x0aacme-tls/1", false),
        (b"\x00\x0e\x0aacme-tls/1\x02h2", false),
        (b"\x00\x03\x02h2", false),
    ];
    for (alpn, want) in table {
        let bytes = records(&message(&[(16, alpn)]), 16_384);
        assert_eq!(hello(&bytes).is_acme_validation(), *want, "{alpn:?}");
    }
}

/// However the bytes are cut, the answer is the same, comes with the last byte of the hello, and
/// is not asked for before `need` bytes are there.
#[test]
fn every_prefix_of_every_fragmentation() {
    let message = message(&[(0, &sni(b"a.test")), (16, ACME), (21, &[0; 300])]);
    for size in [1, 2, 3, 7, 100, 16_384] {
        let bytes = records(&message, size);
        let want = hello(&bytes);
        assert_eq!((want.wire_len, want.records), (bytes.len(), message.len().div_ceil(size)));
        assert!(want.is_acme_validation());
        let mut dripping = Reader::new(65_536);
        let mut need = 1;
        for end in 0..bytes.len() {
            let step = dripping.feed(&bytes[..end]);
            let Step::More { need: next } = step else { panic!("{end} of {size}: {step:?}") };
            assert!(next > end && next <= bytes.len() && next >= need, "{end} -> {next}");
            assert_eq!(whole(&bytes[..end]), step, "memory must not matter");
            need = next;
        }
        assert_eq!(dripping.feed(&bytes), Step::Hello(Box::new(want)));
    }
}

#[test]
fn the_limit_counts_the_message_whatever_its_records() {
    let with_len = |total: usize| message(&[(21, &vec![0; total - 43 - 4])]);
    for size in [1, 16_384] {
        let bytes = records(&with_len(5_000), size);
        assert!(matches!(Reader::new(5_000).feed(&bytes), Step::Hello(_)));
        assert_eq!(Reader::new(4_999).feed(&bytes), Step::Bad(BadHello::TooLong));
        let early = &records(&with_len(5_000), 1)[..24];
        assert_eq!(Reader::new(4_999).feed(early), Step::Bad(BadHello::TooLong));
    }
}

#[test]
fn what_is_no_hello_is_said_at_once() {
    let good = message(&[]);
    let duplicate = message(&[(0, &sni(b"a.test")), (5, b""), (0, &sni(b"b.test"))]);
    let two_names = [sni(b"a.test"), sni(b"b.test")].map(|list| list[2..].to_vec()).concat();
    let two_names = [&len16(two_names.len())[..], &two_names].concat();
    let bad = |extensions: &[(u16, &[u8])]| records(&message(extensions), 16_384);
    let table: Vec<(Vec<u8>, BadHello)> = vec![
        (b"G".to_vec(), BadHello::NotTls),
        (b"\x80\x2e\x01".to_vec(), BadHello::NotTls),
        (b"\x16\x02".to_vec(), BadHello::NotTls),
        (b"\x15\x03\x01\x00\x02\x02\x28".to_vec(), BadHello::NotTls),
        (b"\x16\x03\x01\x40\x01".to_vec(), BadHello::Record),
        (b"\x16\x03\x01\x00\x00".to_vec(), BadHello::Record),
        (b"\x16\x03\x01\x00\x05\x02".to_vec(), BadHello::Unexpected),
        ([&records(&good, 10)[..15], b"\x17"].concat(), BadHello::Unexpected),
        (records(&duplicate, 16_384), BadHello::Duplicate),
        (bad(&[(0, &two_names)]), BadHello::Malformed),
        (bad(&[(0, b"\x00\x00")]), BadHello::Malformed),
        (bad(&[(0, b"\x00\x09\x00\x00\x06a.test!")]), BadHello::Malformed),
        (bad(&[(16, b"\x00\x00")]), BadHello::Malformed),
        (bad(&[(16, b"\x00\x01\x00")]), BadHello::Malformed),
        (bad(&[(43, b"\x03\x03\x04\x03")]), BadHello::Malformed),
        (records(&[1, 0, 0, 2, 3, 3], 16_384), BadHello::Malformed),
    ];
    for (bytes, want) in table {
        assert_eq!(whole(&bytes), Step::Bad(want), "{bytes:x?}");
    }
}

#[test]
fn a_name_that_is_none_is_not_repaired() {
    for name in [&b"a.test."[..], b"", b"10.0.0.1", b"a.test\0.evil.test"] {
        let bytes = records(&message(&[(0, &sni(name))]), 16_384);
        assert!(matches!(hello(&bytes).sni, Sni::Invalid(_)), "{name:?}");
    }
}
