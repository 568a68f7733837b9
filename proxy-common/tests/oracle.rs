//! Comparison of the ClientHello parser with an independent one, the crate `tls-parser`. The input is real
//! hellos, generated hellos, and both with changed bytes.
//!
//! This parser may be stricter. It must never accept a hello that the other one rejects, and never read
//! another name or another list of protocols.

use std::path::Path;

use proptest::prelude::*;
use snisplit_common::client_hello::{ClientHello, ClientHelloParser, ParseStatus, Sni};
use snisplit_common::server_name::ServerName;
use tls_parser::{
    SNIType, TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extension,
    parse_tls_message_handshake,
};

/// Fields that the other parser reads from a handshake message.
#[derive(Debug, Default, PartialEq)]
struct OracleResult {
    names: Vec<Vec<u8>>,
    alpn: Vec<Vec<u8>>,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the two kinds let in are handled")]
fn parse_with_oracle(message: &[u8]) -> Option<OracleResult> {
    let (_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello))) =
        parse_tls_message_handshake(message).ok()?
    else {
        return None;
    };
    let mut result = OracleResult::default();
    let mut rest = hello.ext.unwrap_or_default();
    while let [kind, _, high, low, ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (extension, behind) = rest.split_at_checked(4 + len)?;
        rest = behind;
        // snisplit ignores the other extensions, and the other parser is stricter about them.
        if ![0, 16].contains(&u16::from_be_bytes([*kind, extension[1]])) {
            continue;
        }
        match parse_tls_client_hello_extension(extension).ok()?.1 {
            TlsExtension::SNI(names) => {
                let hosts = names.iter().filter(|(kind, _)| *kind == SNIType::HostName);
                result.names.extend(hosts.map(|(_, name)| name.to_vec()));
            }
            TlsExtension::ALPN(list) => result.alpn.extend(list.iter().map(|p| p.to_vec())),
            _ => return None,
        }
    }
    rest.is_empty().then_some(result)
}

fn parse_with_snisplit(message: &[u8], record: usize) -> Option<ClientHello> {
    let header = |part: &[u8]| [22, 3, 1, (part.len() >> 8) as u8, part.len() as u8];
    let bytes: Vec<u8> =
        message.chunks(record).flat_map(|part| [&header(part), part].concat()).collect();
    match ClientHelloParser::new(65_536).parse(&bytes) {
        ParseStatus::Complete(hello) => Some(*hello),
        ParseStatus::Incomplete { .. } | ParseStatus::Invalid(_) => None,
    }
}

fn assert_agreement(message: &[u8], record: usize) -> Result<bool, TestCaseError> {
    let Some(client_hello) = parse_with_snisplit(message, record) else { return Ok(false) };
    let other = parse_with_oracle(message);
    prop_assert!(other.is_some(), "only snisplit accepts {message:02x?}");
    let other = other.unwrap_or_default();
    prop_assert_eq!(&client_hello.alpn, &other.alpn);
    match (&client_hello.sni, other.names.as_slice()) {
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

/// Handshake messages of the recorded ClientHellos, which have one record each.
fn recorded_client_hellos() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/client_hellos");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let recorded = files.filter(|path| path.extension().is_some_and(|kind| kind == "bin"));
    recorded.map(|path| std::fs::read(path).unwrap()[5..].to_vec()).collect()
}

fn encode_vec16(data: &[u8]) -> Vec<u8> {
    [&[(data.len() >> 8) as u8, data.len() as u8], data].concat()
}

fn extension() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let name = prop_oneof!["[a-zA-Z0-9.-]{1,40}".prop_map(String::into_bytes), any::<Vec<u8>>()];
    let protocol = prop_oneof![Just("h2"), Just("acme-tls/1"), Just("http/1.1")];
    prop_oneof![
        name.prop_map(|name| (0, encode_vec16(&[&[0], &encode_vec16(&name)[..]].concat()))),
        prop::collection::vec(protocol, 0..4).prop_map(|list| {
            let entry = |p: &str| [&[p.len() as u8], p.as_bytes()].concat();
            (16, encode_vec16(&list.into_iter().flat_map(entry).collect::<Vec<u8>>()))
        }),
        (100_u16.., prop::collection::vec(any::<u8>(), 0..200)),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let body = |extensions: Vec<(u16, Vec<u8>)>| {
        let list: Vec<u8> = extensions
            .into_iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes(), &encode_vec16(&data)[..]].concat())
            .collect();
        let fixed = [&[3, 3][..], &[9; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
        [fixed, encode_vec16(&list)].concat()
    };
    prop::collection::vec(extension(), 0..6)
        .prop_map(body)
        .prop_map(|body| [&[1, 0], &encode_vec16(&body)[..]].concat())
}

#[test]
fn recorded_client_hellos_agree() {
    let all = recorded_client_hellos();
    assert!(all.len() >= 9);
    for message in all {
        assert!(assert_agreement(&message, 16_384).unwrap());
        assert!(assert_agreement(&message, 7).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn generated_client_hellos_agree(message in message(), record in 1_usize..600) {
        assert_agreement(&message, record)?;
    }

    #[test]
    fn mutated_client_hellos_agree(
        message in prop_oneof![message(), prop::sample::select(recorded_client_hellos())],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut message = message;
        for (place, byte) in changes {
            let place = place.index(message.len());
            message[place] = byte;
        }
        assert_agreement(&message, 16_384)?;
    }
}
