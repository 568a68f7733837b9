//! STARTTLS of PostgreSQL: a request of eight bytes before the ClientHello.
//!
//! The protocol is "SSL Session Encryption" in the PostgreSQL documentation. A client may request GSSAPI
//! encryption first. Since version 17, it may send the ClientHello without a request
//! (`sslnegotiation=direct`).

/// `SSLRequest`: length 8, code 1234 5679.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// `GSSENCRequest`: length 8, code 1234 5680.
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// Answer to an accepted `SSLRequest`. The client then sends a ClientHello.
pub const SSL_ACCEPTED: u8 = b'S';
/// Answer to a refused request. The client may then send another request.
pub const SSL_REFUSED: u8 = b'N';

/// Result of parsing the first bytes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StarttlsStatus {
    /// More bytes are necessary.
    Incomplete {
        /// Smallest number of bytes, from the start of the connection, that can change the result.
        needed: usize,
    },
    /// `SSLRequest`: the client requests TLS.
    SslRequest,
    /// `GSSENCRequest`: the client requests GSSAPI encryption, which has no server name.
    GssEncRequest,
    /// Other bytes: TLS without a request, or another protocol.
    Other,
}

/// Parses all bytes of the connection so far.
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
