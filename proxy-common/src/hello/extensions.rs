//! The body of a ClientHello, once it is whole. RFC 8446 §4.1.2 and §4.2.

use super::{BadHello, Hello, Sni};
use crate::name::ServerName;
use crate::wire::Cursor;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

const HOST_NAME: u8 = 0;

pub(super) fn parse(body: &[u8], wire_len: usize, records: usize) -> Result<Hello, BadHello> {
    let (legacy_version, extensions) = fixed_part(Cursor::new(body)).ok_or(BadHello::Malformed)?;
    let mut hello = Hello {
        sni: Sni::Absent,
        alpn: Vec::new(),
        versions: vec![legacy_version],
        early_data: false,
        ech: false,
        wire_len,
        records,
    };
    let mut rest = extensions;
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let kind = rest.u16().ok_or(BadHello::Malformed)?;
        let data = rest.vec16().ok_or(BadHello::Malformed)?;
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.sni = server_name(data).ok_or(BadHello::Malformed)?,
            ALPN => hello.alpn = protocols(data).ok_or(BadHello::Malformed)?,
            SUPPORTED_VERSIONS => hello.versions = versions(data).ok_or(BadHello::Malformed)?,
            EARLY_DATA => hello.early_data = true,
            ENCRYPTED_CLIENT_HELLO => hello.ech = true,
            _ => {}
        }
    }
    seen.sort_unstable();
    match seen.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(BadHello::Duplicate),
        false => Ok(hello),
    }
}

/// Everything before the extensions; those may be missing altogether (TLS 1.2, RFC 5246 §7.4.1.2).
fn fixed_part(mut body: Cursor<'_>) -> Option<(u16, Cursor<'_>)> {
    let legacy_version = body.u16()?;
    let _random = body.take(32)?;
    let session_id = body.vec8()?.rest();
    let cipher_suites = body.vec16()?.rest();
    let compression = body.vec8()?.rest();
    let extensions = if body.is_empty() { body } else { body.vec16()? };
    let sound = session_id.len() <= 32
        && !cipher_suites.is_empty()
        && cipher_suites.len() % 2 == 0
        && !compression.is_empty()
        && body.is_empty();
    sound.then_some((legacy_version, extensions))
}

/// One host name at most; entries of other types have no meaning yet and are passed over.
fn server_name(mut data: Cursor<'_>) -> Option<Sni> {
    let mut list = data.vec16().filter(|list| !list.is_empty() && data.is_empty())?;
    let mut sni = Sni::Absent;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.vec16()?.rest();
        match (kind, &sni) {
            (HOST_NAME, Sni::Absent) => {
                sni = ServerName::parse(name).map_or_else(Sni::Invalid, Sni::Name);
            }
            (HOST_NAME, Sni::Name(_) | Sni::Invalid(_)) => return None,
            _ => {}
        }
    }
    Some(sni)
}

fn protocols(mut data: Cursor<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = data.vec16().filter(|list| !list.is_empty() && data.is_empty())?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.vec8()?.rest();
        protocols.push((!name.is_empty()).then(|| name.to_vec())?);
    }
    Some(protocols)
}

fn versions(mut data: Cursor<'_>) -> Option<Vec<u16>> {
    let list = data.vec8().filter(|list| !list.is_empty() && data.is_empty())?.rest();
    let (pairs, odd) = list.as_chunks::<2>();
    odd.is_empty().then(|| pairs.iter().map(|&pair| u16::from_be_bytes(pair)).collect())
}
