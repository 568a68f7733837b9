//! PostgreSQL's way to TLS: eight bytes first, then a ClientHello on the same connection.
//!
//! "SSL Session Encryption" in the PostgreSQL documentation of its protocol. A client may ask for
//! GSSAPI encryption first, and since version 17 may leave all of it out (`sslnegotiation=direct`).

/// `SSLRequest`: length 8, code 1234 5679.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// `GSSENCRequest`: length 8, code 1234 5680.
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// "Go on, speak TLS."
pub const WILLING: u8 = b'S';
/// "Not that; ask for something else."
pub const UNWILLING: u8 = b'N';

/// What a client asks for with its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No fewer than `need` bytes from the connection's start can tell.
    More {
        /// Bytes, counted from the connection's first one.
        need: usize,
    },
    /// TLS, by an `SSLRequest`.
    Tls,
    /// GSSAPI encryption, which nobody could route.
    Gss,
    /// Something else: TLS without asking, or nothing that is understood here.
    Other,
}

/// Looks at all bytes that the connection has brought so far.
pub fn read(seen: &[u8]) -> Step {
    let could_be = |request: &[u8; 8]| seen.iter().zip(request).all(|(a, b)| a == b);
    match (could_be(&SSL_REQUEST), could_be(&GSSENC_REQUEST), seen.len() >= 8) {
        (false, false, _) => Step::Other,
        (_, _, false) => Step::More { need: 8 },
        (true, _, true) => Step::Tls,
        (false, true, true) => Step::Gss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_any_cut() {
        for (request, want) in [(SSL_REQUEST, Step::Tls), (GSSENC_REQUEST, Step::Gss)] {
            for end in 0..8 {
                assert_eq!(read(&request[..end]), Step::More { need: 8 });
            }
            assert_eq!(read(&[&request[..], b"\x16\x03"].concat()), want);
        }
        assert_eq!(read(b"\x16"), Step::Other);
        assert_eq!(read(b"\0\0\0\x10\x04\xd2\x16\x2e"), Step::Other, "a CancelRequest");
    }
}
