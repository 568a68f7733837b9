//! The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): who is behind a proxy.
//!
//! Sans I/O, like the hello: [`read`] gets all bytes so far and says when the header is whole. The
//! grammar is the `proxy-header` crate's; bounds, the checksum and how many bytes to wait for are
//! ours.

use core::net::{IpAddr, SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, Tlv};

/// The longest header that is read: addresses and a page of TLVs. Version 2 could claim 65,551.
pub const HEADER_MAX: usize = 4096;

const V1: &[u8] = b"PROXY ";
/// The longest line of version 1, §2.1.
const V1_MAX: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
const TLV_CRC32C: u8 = 0x03;

/// Which version to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One line of text, addresses only.
    V1,
    /// Binary, with TLVs.
    V2,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that it takes.
    pub len: usize,
    /// Source and destination; `None` for LOCAL and UNKNOWN, where the connection's own count.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// They do not begin like one.
    Missing,
    /// Something in it is wrong.
    Malformed,
    /// Longer than [`HEADER_MAX`].
    TooLong,
    /// The CRC32c of version 2 (§2.2.3) is another.
    Checksum,
}

impl BadHeader {
    /// A short word for counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "proxy_header_missing",
            Self::Malformed => "proxy_header_malformed",
            Self::TooLong => "proxy_header_too_long",
            Self::Checksum => "proxy_header_checksum",
        }
    }
}

/// What is known after some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No fewer than `need` bytes from the connection's start can change that.
    More {
        /// Bytes, counted from the connection's first one.
        need: usize,
    },
    /// The header is whole.
    Header(Header),
    /// It never will be.
    Bad(BadHeader),
}

/// Looks at all bytes that the connection has brought so far.
pub fn read(seen: &[u8]) -> Step {
    let parsed = if begins(seen, V2) {
        read_v2(seen)
    } else if begins(seen, V1) {
        read_v1(seen)
    } else {
        Err(BadHeader::Missing)
    };
    parsed.unwrap_or_else(Step::Bad)
}

/// Whether bytes that should be a ClientHello begin like a header instead.
pub fn is_announced(seen: &[u8]) -> bool {
    seen.starts_with(V2) || seen.starts_with(V1)
}

/// Whether the one is the beginning of the other, whichever is shorter.
fn begins(seen: &[u8], signature: &[u8]) -> bool {
    seen.iter().zip(signature).all(|(a, b)| a == b)
}

fn read_v1(seen: &[u8]) -> Result<Step, BadHeader> {
    let line = seen.windows(2).take(V1_MAX - 1).position(|pair| pair == b"\r\n");
    match line {
        Some(end) if is_strict(&seen[..end]) => parse(&seen[..end + 2]),
        Some(_) => Err(BadHeader::Malformed),
        None if seen.len() >= V1_MAX => Err(BadHeader::Malformed),
        None => Ok(Step::More { need: seen.len() + 1 }),
    }
}

/// What the crate does not mind: behind `UNKNOWN` anything may stand, but behind a space and in text;
/// a port is digits, the first of several not a zero (§2.1).
fn is_strict(line: &[u8]) -> bool {
    match line.strip_prefix(b"PROXY UNKNOWN") {
        Some(rest) => {
            rest.first().is_none_or(|b| *b == b' ') && rest.iter().all(|b| (32..127).contains(b))
        }
        None => line.rsplit(|b| *b == b' ').take(2).all(is_number),
    }
}

fn is_number(word: &[u8]) -> bool {
    word.iter().all(u8::is_ascii_digit) && (word.len() == 1 || !word.starts_with(b"0"))
}

fn read_v2(seen: &[u8]) -> Result<Step, BadHeader> {
    let Some(fixed) = seen.first_chunk::<V2_FIXED>() else {
        return Ok(Step::More { need: V2_FIXED });
    };
    let len = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if len > HEADER_MAX {
        return Err(BadHeader::TooLong);
    }
    match seen.get(..len) {
        Some(header) => parse(header),
        None => Ok(Step::More { need: len }),
    }
}

fn parse(bytes: &[u8]) -> Result<Step, BadHeader> {
    let (header, len) = ProxyHeader::parse(bytes, ParseConfig::default())
        .map_err(|_: proxy_header::Error| BadHeader::Malformed)?;
    if header.tlvs().any(|tlv| tlv.is_err()) || len != bytes.len() {
        return Err(BadHeader::Malformed);
    }
    if header.crc32c().is_some_and(|told| checksum(bytes) != Some(told)) {
        return Err(BadHeader::Checksum);
    }
    let addresses = match header.proxied_address() {
        None => None,
        Some(ProxiedAddress { protocol: Protocol::Stream, source, destination }) => {
            Some((canonical(*source), canonical(*destination)))
        }
        // Nothing came by datagram over this connection.
        Some(_) => return Err(BadHeader::Malformed),
    };
    Ok(Step::Header(Header { len, addresses }))
}

/// The checksum of a version 2 header, its own field taken as zero.
fn checksum(header: &[u8]) -> Option<u32> {
    let mut bytes = header.to_vec();
    let place = checksum_place(&bytes)?;
    bytes.get_mut(place..place + 4)?.fill(0);
    Some(crc32c::crc32c(&bytes))
}

/// Where the checksum's four bytes are, behind the addresses and among the TLVs.
fn checksum_place(header: &[u8]) -> Option<usize> {
    let addresses = match header.get(13)? >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let mut at = V2_FIXED + addresses;
    loop {
        let tlv = header.get(at..at + 3)?;
        if tlv[0] == TLV_CRC32C {
            return Some(at + 3);
        }
        at += 3 + usize::from(u16::from_be_bytes([tlv[1], tlv[2]]));
    }
}

/// A header to send. Version 2 tells the server name (`PP2_TYPE_AUTHORITY`), the first protocol of
/// the client's list (`PP2_TYPE_ALPN`) and its own checksum.
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
        && let (Some(place), Some(sum)) = (checksum_place(&bytes), checksum(&bytes))
    {
        bytes[place..place + 4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// An IPv4 address that came in an IPv6 one is IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

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
