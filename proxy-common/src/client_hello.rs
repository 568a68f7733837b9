//! The first thing a TLS client says, and the few facts we want from it.
//!
//! Sans I/O: [`ClientHelloParser::parse`] gets all bytes that have arrived so far and says when it knows
//! enough. A hello is decided only when it is whole, so how it was cut into TCP segments or TLS
//! records can never change a decision (CVE-2026-32305 was that). RFC 8446 §4.1.2 and §5.1.

use crate::alert::Alert;
use crate::server_name::{ServerName, ServerNameError};

mod extensions;
mod parser;

pub use parser::{ClientHelloParser, ParseStatus};

/// What a ClientHello says, as far as it matters to a splitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name extension (RFC 6066 §3).
    pub sni: Sni,
    /// The protocols offered, in the client's order (RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// The versions offered: the extension of RFC 8446 §4.2.1, else the one legacy version.
    pub versions: Vec<u16>,
    /// Whether data may stand right behind the hello (0-RTT, RFC 8446 §4.2.10).
    pub early_data: bool,
    /// Whether an encrypted inner hello is offered (RFC 9849); GREASE looks the same.
    pub ech: bool,
    /// Bytes of the connection up to the hello's last one.
    pub wire_len: usize,
    /// TLS records that these bytes stand in.
    pub records: usize,
}

/// The name a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// No extension.
    Absent,
    /// A name that could be somebody's.
    Name(ServerName),
    /// An extension whose name is none, and why.
    Invalid(ServerNameError),
}

impl ClientHello {
    /// Whether this is an ACME validation: that protocol and no other (RFC 8737 §3).
    pub fn is_acme_validation(&self) -> bool {
        matches!(self.alpn.as_slice(), [only] if only == b"acme-tls/1")
    }
}

/// Why bytes are no ClientHello that we could pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientHelloError {
    /// The first bytes are no TLS handshake record.
    NotTls,
    /// A TLS record of another type, or another handshake message.
    UnexpectedMessage,
    /// A record that claims more than 2^14 bytes, or none.
    InvalidRecordLength,
    /// A message longer than the limit.
    TooLong,
    /// Lengths inside the message that do not add up.
    Malformed,
    /// An extension that stands twice, which RFC 8446 §4.2 forbids.
    DuplicateExtension,
}

impl ClientHelloError {
    /// The alert that answers it.
    pub const fn alert(self) -> Alert {
        match self {
            Self::NotTls | Self::UnexpectedMessage => Alert::UnexpectedMessage,
            Self::InvalidRecordLength => Alert::RecordOverflow,
            Self::TooLong | Self::Malformed => Alert::DecodeError,
            Self::DuplicateExtension => Alert::IllegalParameter,
        }
    }

    /// A short word for counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::UnexpectedMessage => "unexpected_message",
            Self::InvalidRecordLength => "invalid_record_length",
            Self::TooLong => "client_hello_too_long",
            Self::Malformed => "malformed_client_hello",
            Self::DuplicateExtension => "duplicate_extension",
        }
    }
}

#[cfg(test)]
mod tests;
