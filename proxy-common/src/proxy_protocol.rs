//! PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): the address of the client behind a
//! proxy.
//!
//! The parser does no I/O: [`parse`] gets all bytes so far. The crate `proxy-header` implements the grammar.
//! This module adds size limits, the checksum, and the number of bytes to wait for.

use core::net::{IpAddr, SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, Tlv};

/// Largest size of a header in bytes: addresses and nearly 4 KiB of TLVs. Version 2 allows 65,551.
pub const MAX_HEADER_LEN: usize = 4096;

const V1_SIGNATURE: &[u8] = b"PROXY ";
/// Largest size of a header of version 1 in bytes (§2.1).
const V1_MAX_LEN: usize = 107;
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_LEN: usize = 16;
const TLV_CRC32C: u8 = 0x03;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One line of text with addresses only.
    V1,
    /// Binary form with TLVs.
    V2,
}

/// Parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Size of the header in bytes.
    pub len: usize,
    /// Source and destination. `None` for LOCAL and UNKNOWN: the addresses of the connection apply.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Why bytes are not a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The bytes do not start with a signature.
    Missing,
    /// The header violates the grammar.
    Malformed,
    /// The header is longer than [`MAX_HEADER_LEN`].
    TooLong,
    /// The CRC32c of version 2 (§2.2.3) is wrong.
    Checksum,
}

impl HeaderError {
    /// Returns the identifier of the error in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "proxy_header_missing",
            Self::Malformed => "proxy_header_malformed",
            Self::TooLong => "proxy_header_too_long",
            Self::Checksum => "proxy_header_checksum",
        }
    }
}

/// Result of parsing the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseStatus {
    /// More bytes are necessary.
    Incomplete {
        /// Smallest number of bytes, from the start of the connection, that can change the result.
        needed: usize,
    },
    /// The header is complete.
    Complete(Header),
    /// The bytes are not a header.
    Invalid(HeaderError),
}

/// Parses all bytes of the connection so far.
pub fn parse(received: &[u8]) -> ParseStatus {
    let status = if matches_signature(received, V2_SIGNATURE) {
        parse_v2(received)
    } else if matches_signature(received, V1_SIGNATURE) {
        parse_v1(received)
    } else {
        Err(HeaderError::Missing)
    };
    status.unwrap_or_else(ParseStatus::Invalid)
}

/// Whether bytes start with a signature of a PROXY header.
pub fn starts_with_signature(received: &[u8]) -> bool {
    received.starts_with(V2_SIGNATURE) || received.starts_with(V1_SIGNATURE)
}

/// Whether the bytes so far match a signature, of which more bytes may be missing.
fn matches_signature(received: &[u8], signature: &[u8]) -> bool {
    received.iter().zip(signature).all(|(a, b)| a == b)
}

fn parse_v1(received: &[u8]) -> Result<ParseStatus, HeaderError> {
    let line_end = received.windows(2).take(V1_MAX_LEN - 1).position(|pair| pair == b"\r\n");
    match line_end {
        Some(end) if is_strict_v1_line(&received[..end]) => decode(&received[..end + 2]),
        Some(_) => Err(HeaderError::Malformed),
        None if received.len() >= V1_MAX_LEN => Err(HeaderError::Malformed),
        None => Ok(ParseStatus::Incomplete { needed: received.len() + 1 }),
    }
}

/// Whether a line of version 1 obeys rules that the crate does not check (§2.1).
///
/// Text after `UNKNOWN` is printable and starts with a space. A port consists of digits, without leading
/// zeros.
fn is_strict_v1_line(line: &[u8]) -> bool {
    match line.strip_prefix(b"PROXY UNKNOWN") {
        Some(rest) => {
            rest.first().is_none_or(|b| *b == b' ') && rest.iter().all(|b| (32..127).contains(b))
        }
        None => line.rsplit(|b| *b == b' ').take(2).all(is_port_number),
    }
}

fn is_port_number(word: &[u8]) -> bool {
    word.iter().all(u8::is_ascii_digit) && (word.len() == 1 || !word.starts_with(b"0"))
}

fn parse_v2(received: &[u8]) -> Result<ParseStatus, HeaderError> {
    let Some(fixed) = received.first_chunk::<V2_FIXED_LEN>() else {
        return Ok(ParseStatus::Incomplete { needed: V2_FIXED_LEN });
    };
    let len = V2_FIXED_LEN + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if len > MAX_HEADER_LEN {
        return Err(HeaderError::TooLong);
    }
    match received.get(..len) {
        Some(header) => decode(header),
        None => Ok(ParseStatus::Incomplete { needed: len }),
    }
}

fn decode(bytes: &[u8]) -> Result<ParseStatus, HeaderError> {
    let (header, len) = ProxyHeader::parse(bytes, ParseConfig::default())
        .map_err(|_: proxy_header::Error| HeaderError::Malformed)?;
    if header.tlvs().any(|tlv| tlv.is_err()) || len != bytes.len() {
        return Err(HeaderError::Malformed);
    }
    if header.crc32c().is_some_and(|expected| checksum(bytes) != Some(expected)) {
        return Err(HeaderError::Checksum);
    }
    let addresses = match header.proxied_address() {
        None => None,
        Some(ProxiedAddress { protocol: Protocol::Stream, source, destination }) => {
            Some((canonical(*source), canonical(*destination)))
        }
        // A datagram protocol contradicts this TCP connection.
        Some(_) => return Err(HeaderError::Malformed),
    };
    Ok(ParseStatus::Complete(Header { len, addresses }))
}

/// Returns the checksum of a header of version 2, computed with a checksum field of zero.
fn checksum(header: &[u8]) -> Option<u32> {
    let mut bytes = header.to_vec();
    let offset = checksum_offset(&bytes)?;
    bytes.get_mut(offset..offset + 4)?.fill(0);
    Some(crc32c::crc32c(&bytes))
}

/// Returns the offset of the checksum, which is a TLV after the addresses.
fn checksum_offset(header: &[u8]) -> Option<usize> {
    let addresses = match header.get(13)? >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let mut offset = V2_FIXED_LEN + addresses;
    loop {
        let tlv = header.get(offset..offset + 3)?;
        if tlv[0] == TLV_CRC32C {
            return Some(offset + 3);
        }
        offset += 3 + usize::from(u16::from_be_bytes([tlv[1], tlv[2]]));
    }
}

/// Encodes a header.
///
/// Version 2 contains the server name (`PP2_TYPE_AUTHORITY`), the first protocol of the client's ALPN list
/// (`PP2_TYPE_ALPN`) and a checksum (`PP2_TYPE_CRC32C`).
pub fn encode(
    version: Version,
    source: SocketAddr,
    destination: SocketAddr,
    name: Option<&str>,
    alpn: Option<&[u8]>,
) -> Vec<u8> {
    let (source, destination) = same_family(canonical(source), canonical(destination));
    let mut header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
    let mut bytes = Vec::new();
    let encoded = match version {
        Version::V1 => header.encode_v1(&mut bytes),
        Version::V2 => {
            alpn.into_iter().for_each(|alpn| header.append_tlv(Tlv::Alpn(alpn.into())));
            name.into_iter().for_each(|name| header.append_tlv(Tlv::Authority(name.into())));
            header.append_tlv(Tlv::Crc32c(0));
            header.encode_v2(&mut bytes)
        }
    };
    debug_assert!(encoded.is_ok(), "a Vec has room, and the addresses are of one family");
    if version == Version::V2
        && let (Some(offset), Some(sum)) = (checksum_offset(&bytes), checksum(&bytes))
    {
        bytes[offset..offset + 4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// Converts an IPv4-mapped IPv6 address to IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Converts two addresses of different families to IPv6.
fn same_family(a: SocketAddr, b: SocketAddr) -> (SocketAddr, SocketAddr) {
    if a.is_ipv4() == b.is_ipv4() {
        return (a, b);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(a), mapped(b))
}

#[cfg(test)]
mod tests;
