//! ClientHello: the first message of a TLS client (RFC 8446 §4.1.2).
//!
//! The parser does no I/O: [`ClientHelloParser::parse`] gets all bytes that have arrived so far. It returns
//! a hello only when it is complete. So its division into TCP segments or TLS records cannot change a
//! decision (compare CVE-2026-32305).

use crate::alert::Alert;
use crate::server_name::{ServerName, ServerNameError};

mod extensions;
mod parser;

pub use parser::{ClientHelloParser, ParseStatus};

/// Maximum length of the protocols in [`ClientHello::alpn`], in bytes on the wire. A browser offers 12 bytes.
pub const MAX_ALPN_LEN: usize = 256;

/// Fields of a ClientHello that snisplit uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name extension (RFC 6066 §3).
    pub sni: Sni,
    /// The first of the offered application protocols, in the client's order (RFC 7301): those that take up to
    /// [`MAX_ALPN_LEN`] bytes on the wire.
    pub alpn: Vec<Vec<u8>>,
    /// Number of offered application protocols that `alpn` omits.
    pub alpn_omitted: usize,
    /// Offered TLS versions: the extension of RFC 8446 §4.2.1, or the legacy version without it.
    pub versions: Vec<u16>,
    /// Whether early data may follow the hello (0-RTT, RFC 8446 §4.2.10).
    pub early_data: bool,
    /// Whether the client offers an encrypted hello (RFC 9849), or pretends to (GREASE).
    pub ech: bool,
    /// Number of bytes from the start of the connection to the end of the hello.
    pub wire_len: usize,
    /// Number of TLS records of the hello.
    pub records: usize,
}

/// Server name that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// The hello has no such extension.
    Absent,
    /// Valid server name.
    Name(ServerName),
    /// Invalid server name, and the reason.
    Invalid(ServerNameError),
}

impl ClientHello {
    /// Whether this is a TLS-ALPN-01 validation: `acme-tls/1` is the only protocol (RFC 8737 §3).
    pub fn is_acme_validation(&self) -> bool {
        self.alpn_omitted == 0 && matches!(self.alpn.as_slice(), [only] if only == b"acme-tls/1")
    }
}

/// Why bytes are not a ClientHello that snisplit can forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientHelloError {
    /// The first bytes are not a TLS handshake record.
    NotTls,
    /// A TLS record has another type, or the message is another handshake message.
    UnexpectedMessage,
    /// A record has more than 2^14 bytes, or none.
    InvalidRecordLength,
    /// The message is longer than the limit.
    TooLong,
    /// The records are too short on average, behind the first 4 KiB.
    TooManyRecords,
    /// Lengths inside the message contradict each other.
    Malformed,
    /// An extension occurs twice, which RFC 8446 §4.2 forbids.
    DuplicateExtension,
}

impl ClientHelloError {
    /// Returns the alert to send.
    pub const fn alert(self) -> Alert {
        match self {
            Self::NotTls | Self::UnexpectedMessage => Alert::UnexpectedMessage,
            Self::InvalidRecordLength => Alert::RecordOverflow,
            Self::TooLong | Self::TooManyRecords | Self::Malformed => Alert::DecodeError,
            Self::DuplicateExtension => Alert::IllegalParameter,
        }
    }

    /// Returns the identifier of the error in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::UnexpectedMessage => "unexpected_message",
            Self::InvalidRecordLength => "invalid_record_length",
            Self::TooLong => "client_hello_too_long",
            Self::TooManyRecords => "too_many_records",
            Self::Malformed => "malformed_client_hello",
            Self::DuplicateExtension => "duplicate_extension",
        }
    }
}

#[cfg(test)]
mod tests;
