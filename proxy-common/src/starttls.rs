//! PostgreSQL's way to TLS: eight bytes first, then a ClientHello on the same connection.
//!
//! "SSL Session Encryption" in the PostgreSQL documentation of its protocol. A client may ask for
//! GSSAPI encryption first, and since version 17 may leave all of it out (`sslnegotiation=direct`).

/// `SSLRequest`: length 8, code 1234 5679.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// `GSSENCRequest`: length 8, code 1234 5680.
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// "Go on, speak TLS."
pub const SSL_ACCEPTED: u8 = b'S';
/// "Not that; ask for something else."
pub const SSL_REFUSED: u8 = b'N';

/// What a client asks for with its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StarttlsStatus {
    /// No fewer than `need` bytes from the connection's start can tell.
    Incomplete {
        /// Bytes, counted from the connection's first one.
        needed: usize,
    },
    /// TLS, by an `SSLRequest`.
    SslRequest,
    /// GSSAPI encryption, which nobody could route.
    GssEncRequest,
    /// Something else: TLS without asking, or nothing that is understood here.
    Other,
}

/// Looks at all bytes that the connection has brought so far.
pub fn parse_request(received: &[u8]) -> StarttlsStatus {
    let is_prefix_of = |request: &[u8; 8]| received.iter().zip(request).all(|(a, b)| a == b);
    match (is_prefix_of(&SSL_REQUEST), is_prefix_of(&GSSENC_REQUEST), received.len() >= 8) {
        (false, false, _) => StarttlsStatus::Other,
        (_, _, false) => StarttlsStatus::Incomplete { needed: 8 },
        (true, _, true) => StarttlsStatus::SslRequest,
        (false, true, true) => StarttlsStatus::GssEncRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_any_cut() {
        for (request, want) in [
            (SSL_REQUEST, StarttlsStatus::SslRequest),
            (GSSENC_REQUEST, StarttlsStatus::GssEncRequest),
        ] {
            for end in 0..8 {
                assert_eq!(
                    parse_request(&request[..end]),
                    StarttlsStatus::Incomplete { needed: 8 }
                );
            }
            assert_eq!(parse_request(&[&request[..], b"\x16\x03"].concat()), want);
        }
        assert_eq!(parse_request(b"\x16"), StarttlsStatus::Other);
        assert_eq!(
            parse_request(b"\0\0\0\x10\x04\xd2\x16\x2e"),
            StarttlsStatus::Other,
            "a CancelRequest"
        );
    }
}
