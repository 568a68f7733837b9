//! TLS alerts: how a refusal sounds on the wire (RFC 8446 §6, RFC 6066 §9).

use core::fmt;

/// The alerts that snisplit sends; the value is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alert {
    /// Something other than a ClientHello came first.
    UnexpectedMessage = 10,
    /// A record longer than 2^14 bytes.
    RecordOverflow = 22,
    /// The hello did not become whole in time.
    HandshakeFailure = 40,
    /// A field has a value that is forbidden, such as an extension that stands twice.
    IllegalParameter = 47,
    /// The bytes are no ClientHello, or one longer than the limit.
    DecodeError = 50,
    /// No back end answered: nothing is wrong with the client.
    InternalError = 80,
    /// No route, or no right to the name.
    UnrecognizedName = 112,
}

impl Alert {
    /// The whole record: type 21, version 3.3, two bytes, level fatal.
    ///
    /// A client reads the version of an alert before negotiation loosely (RFC 8446 §5.1).
    pub const fn to_record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }

    /// The name in the IANA registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnexpectedMessage => "unexpected_message",
            Self::RecordOverflow => "record_overflow",
            Self::HandshakeFailure => "handshake_failure",
            Self::IllegalParameter => "illegal_parameter",
            Self::DecodeError => "decode_error",
            Self::InternalError => "internal_error",
            Self::UnrecognizedName => "unrecognized_name",
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", *self as u8, self.name())
    }
}
