//! Parser of the body of a complete ClientHello (RFC 8446 §4.1.2 and §4.2).

use super::{ClientHello, ClientHelloError, MAX_ALPN_LEN, Sni};
use crate::cursor::Cursor;
use crate::server_name::ServerName;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

const HOST_NAME: u8 = 0;

/// Parses the body of a ClientHello.
///
/// # Errors
/// Fails if the body is malformed, or an extension occurs twice.
pub(super) fn parse(
    body: &[u8],
    wire_len: usize,
    records: usize,
) -> Result<ClientHello, ClientHelloError> {
    let (legacy_version, extensions) =
        parse_fixed_fields(Cursor::new(body)).ok_or(ClientHelloError::Malformed)?;
    let mut client_hello = ClientHello {
        sni: Sni::Absent,
        alpn: Vec::new(),
        alpn_omitted: 0,
        versions: vec![legacy_version],
        early_data: false,
        ech: false,
        wire_len,
        records,
    };
    let mut remaining = extensions;
    let mut seen_types = Vec::new();
    while !remaining.is_empty() {
        let extension_type = remaining.u16().ok_or(ClientHelloError::Malformed)?;
        let data = remaining.vec16().ok_or(ClientHelloError::Malformed)?;
        seen_types.push(extension_type);
        match extension_type {
            SERVER_NAME => {
                client_hello.sni = parse_server_name(data).ok_or(ClientHelloError::Malformed)?
            }
            ALPN => {
                let protocols = parse_alpn(data).ok_or(ClientHelloError::Malformed)?;
                client_hello.alpn = protocols.first;
                client_hello.alpn_omitted = protocols.omitted;
            }
            SUPPORTED_VERSIONS => {
                client_hello.versions =
                    parse_supported_versions(data).ok_or(ClientHelloError::Malformed)?
            }
            EARLY_DATA => client_hello.early_data = true,
            ENCRYPTED_CLIENT_HELLO => client_hello.ech = true,
            _ => {}
        }
    }
    seen_types.sort_unstable();
    match seen_types.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(ClientHelloError::DuplicateExtension),
        false => Ok(client_hello),
    }
}

/// Parses the fields before the extensions, and returns the legacy version and the extensions. TLS 1.2
/// allows a hello without extensions (RFC 5246 §7.4.1.2).
fn parse_fixed_fields(mut body: Cursor<'_>) -> Option<(u16, Cursor<'_>)> {
    let legacy_version = body.u16()?;
    let _random = body.read_bytes(32)?;
    let session_id = body.vec8()?.rest();
    let cipher_suites = body.vec16()?.rest();
    let compression = body.vec8()?.rest();
    let extensions = if body.is_empty() { body } else { body.vec16()? };
    let is_valid = session_id.len() <= 32
        && !cipher_suites.is_empty()
        && cipher_suites.len() % 2 == 0
        && !compression.is_empty()
        && body.is_empty();
    is_valid.then_some((legacy_version, extensions))
}

/// Parses a list with at most one host name. Other types of entries are not defined, and are ignored.
fn parse_server_name(mut data: Cursor<'_>) -> Option<Sni> {
    let mut list = data.vec16().filter(|list| !list.is_empty() && data.is_empty())?;
    let mut sni = Sni::Absent;
    while !list.is_empty() {
        let name_type = list.u8()?;
        let name = list.vec16()?.rest();
        match (name_type, &sni) {
            (HOST_NAME, Sni::Absent) => {
                sni = ServerName::parse(name).map_or_else(Sni::Invalid, Sni::Name);
            }
            (HOST_NAME, Sni::Name(_) | Sni::Invalid(_)) => return None,
            _ => {}
        }
    }
    Some(sni)
}

/// The first protocols of a list, and the number of the others.
struct Protocols {
    first: Vec<Vec<u8>>,
    omitted: usize,
}

/// Parses a list of protocols. Keeps those that take up to [`MAX_ALPN_LEN`] bytes on the wire.
fn parse_alpn(mut data: Cursor<'_>) -> Option<Protocols> {
    let mut list = data.vec16().filter(|list| !list.is_empty() && data.is_empty())?;
    let mut protocols = Protocols { first: Vec::new(), omitted: 0 };
    let mut room = MAX_ALPN_LEN;
    while !list.is_empty() {
        let name = Some(list.vec8()?.rest()).filter(|name| !name.is_empty())?;
        match room.checked_sub(1 + name.len()).filter(|_| protocols.omitted == 0) {
            Some(left) => {
                room = left;
                protocols.first.push(name.to_vec());
            }
            None => protocols.omitted += 1,
        }
    }
    Some(protocols)
}

fn parse_supported_versions(mut data: Cursor<'_>) -> Option<Vec<u16>> {
    let list = data.vec8().filter(|list| !list.is_empty() && data.is_empty())?.rest();
    let (pairs, trailing) = list.as_chunks::<2>();
    trailing.is_empty().then(|| pairs.iter().map(|&pair| u16::from_be_bytes(pair)).collect())
}
