//! TLS alerts (RFC 8446 §6, RFC 6066 §9).

use core::fmt;

/// Alert that snisplit sends. The value is its code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alert {
    /// The first message is not a ClientHello.
    UnexpectedMessage = 10,
    /// A record is longer than 2^14 bytes.
    RecordOverflow = 22,
    /// The hello was not complete in time.
    HandshakeFailure = 40,
    /// A field has a forbidden value, such as a duplicate extension.
    IllegalParameter = 47,
    /// The bytes are not a valid ClientHello, or it is longer than the limit.
    DecodeError = 50,
    /// No back end answered. The client did nothing wrong.
    InternalError = 80,
    /// No route has the name, or a validation of it is not allowed.
    UnrecognizedName = 112,
}

impl Alert {
    /// Returns the TLS record of the alert: type 21, version 3.3, length 2, level fatal.
    ///
    /// Clients must ignore the version of a record before negotiation (RFC 8446 §5.1).
    pub const fn to_record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }

    /// Returns the name in the IANA registry.
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
