//! Our hello parser against an independent one (the `tls-parser` crate), on real greetings, on
//! generated hellos and on both with bytes changed.
//!
//! Ours may be stricter. What must never happen: it accepts a hello that the other cannot read, or
//! reads another name or another list of protocols out of it.

use std::path::Path;

use proptest::prelude::*;
use snisplit_common::hello::{Hello, Reader, Sni, Step};
use snisplit_common::name::ServerName;
use tls_parser::{
    SNIType, TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extension,
    parse_tls_message_handshake,
};

/// What the other parser reads out of a handshake message.
#[derive(Debug, Default, PartialEq)]
struct Oracle {
    names: Vec<Vec<u8>>,
    alpn: Vec<Vec<u8>>,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the two kinds let in are handled")]
fn oracle(message: &[u8]) -> Option<Oracle> {
    let (_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello))) =
        parse_tls_message_handshake(message).ok()?
    else {
        return None;
    };
    let mut read = Oracle::default();
    let mut rest = hello.ext.unwrap_or_default();
    while let [kind, _, high, low, ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (extension, behind) = rest.split_at_checked(4 + len)?;
        rest = behind;
        // The others are none of our business, and the oracle is particular about them.
        if ![0, 16].contains(&u16::from_be_bytes([*kind, extension[1]])) {
            continue;
        }
        match parse_tls_client_hello_extension(extension).ok()?.1 {
            TlsExtension::SNI(names) => {
                let hosts = names.iter().filter(|(kind, _)| *kind == SNIType::HostName);
                read.names.extend(hosts.map(|(_, name)| name.to_vec()));
            }
            TlsExtension::ALPN(list) => read.alpn.extend(list.iter().map(|p| p.to_vec())),
            _ => return None,
        }
    }
    rest.is_empty().then_some(read)
}

fn ours(message: &[u8], record: usize) -> Option<Hello> {
    let header = |part: &[u8]| [22, 3, 1, (part.len() >> 8) as u8, part.len() as u8];
    let bytes: Vec<u8> =
        message.chunks(record).flat_map(|part| [&header(part), part].concat()).collect();
    match Reader::new(65_536).feed(&bytes) {
        Step::Hello(hello) => Some(*hello),
        Step::More { .. } | Step::Bad(_) => None,
    }
}

fn agree(message: &[u8], record: usize) -> Result<bool, TestCaseError> {
    let Some(hello) = ours(message, record) else { return Ok(false) };
    let other = oracle(message);
    prop_assert!(other.is_some(), "only we accept {message:02x?}");
    let other = other.unwrap_or_default();
    prop_assert_eq!(&hello.alpn, &other.alpn);
    match (&hello.sni, other.names.as_slice()) {
        (Sni::Absent, []) => {}
        (Sni::Name(name), [theirs]) => {
            prop_assert_eq!(name.as_str().as_bytes(), theirs.to_ascii_lowercase());
        }
        (Sni::Invalid(why), [theirs]) => {
            prop_assert_eq!(ServerName::parse(theirs), Err(*why));
        }
        (sni, names) => prop_assert!(false, "{sni:?} against {names:?}"),
    }
    Ok(true)
}

/// The handshake messages of the recorded greetings, which are one record each.
fn greetings() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/greetings");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let recorded = files.filter(|path| path.extension().is_some_and(|kind| kind == "bin"));
    recorded.map(|path| std::fs::read(path).unwrap()[5..].to_vec()).collect()
}

fn vector(data: &[u8]) -> Vec<u8> {
    [&[(data.len() >> 8) as u8, data.len() as u8], data].concat()
}

fn extension() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let name = prop_oneof!["[a-zA-Z0-9.-]{1,40}".prop_map(String::into_bytes), any::<Vec<u8>>()];
    let protocol = prop_oneof![Just("h2"), Just("acme-tls/1"), Just("http/1.1")];
    prop_oneof![
        name.prop_map(|name| (0, vector(&[&[0], &vector(&name)[..]].concat()))),
        prop::collection::vec(protocol, 0..4).prop_map(|list| {
            let entry = |p: &str| [&[p.len() as u8], p.as_bytes()].concat();
            (16, vector(&list.into_iter().flat_map(entry).collect::<Vec<u8>>()))
        }),
        (100_u16.., prop::collection::vec(any::<u8>(), 0..200)),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let body = |extensions: Vec<(u16, Vec<u8>)>| {
        let list: Vec<u8> = extensions
            .into_iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes(), &vector(&data)[..]].concat())
            .collect();
        let fixed = [&[3, 3][..], &[9; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
        [fixed, vector(&list)].concat()
    };
    prop::collection::vec(extension(), 0..6)
        .prop_map(body)
        .prop_map(|body| [&[1, 0], &vector(&body)[..]].concat())
}

#[test]
fn real_greetings_read_alike() {
    let all = greetings();
    assert!(all.len() >= 9);
    for message in all {
        assert!(agree(&message, 16_384).unwrap());
        assert!(agree(&message, 7).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn generated_hellos_read_alike(message in message(), record in 1_usize..600) {
        agree(&message, record)?;
    }

    #[test]
    fn changed_hellos_read_alike(
        message in prop_oneof![message(), prop::sample::select(greetings())],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut message = message;
        for (place, byte) in changes {
            let place = place.index(message.len());
            message[place] = byte;
        }
        agree(&message, 16_384)?;
    }
}
