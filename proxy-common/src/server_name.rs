//! Server names in lower case, and patterns of routes.
//!
//! The parser is strict: RFC 6066 §3 requires an A-label host name without a trailing dot. It does not repair
//! other names. A back end could repair a name in another way, and then disagree about its owner.

use core::fmt;
use std::str::FromStr;

/// Host name in lower case: 1 to 253 bytes, with labels of 1 to 63 letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

/// Why bytes are not a valid server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServerNameError {
    /// The name is empty.
    Empty,
    /// The name has more than 253 bytes, or a label has more than 63.
    TooLong,
    /// The name ends in a dot.
    TrailingDot,
    /// The name has two dots in a row, or one at the start.
    EmptyLabel,
    /// The name has a byte that A-labels do not have (NUL, UTF-8, a colon, …), or a hyphen at the edge of a
    /// label.
    InvalidCharacter,
    /// The last label is a number, so this is an IPv4 address, which RFC 6066 §3 forbids.
    IpAddress,
}

impl ServerName {
    /// Parses a name from the wire or from a configuration file.
    ///
    /// # Errors
    ///
    /// Fails if the bytes violate a rule of host names.
    pub fn parse(bytes: &[u8]) -> Result<Self, ServerNameError> {
        let Some((&last, _)) = bytes.split_last() else {
            return Err(ServerNameError::Empty);
        };
        if bytes.len() > 253 {
            return Err(ServerNameError::TooLong);
        }
        if last == b'.' {
            return Err(ServerNameError::TrailingDot);
        }
        bytes.split(|&b| b == b'.').try_for_each(check_label)?;
        let name = str::from_utf8(bytes)
            .map_err(|_| ServerNameError::InvalidCharacter)?
            .to_ascii_lowercase();
        let top = name.rsplit('.').next().unwrap_or_default();
        if top.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ServerNameError::IpAddress);
        }
        Ok(Self(name.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name without its first label: the suffix of a wildcard that matches it.
    pub fn parent(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, parent)| parent)
    }
}

fn check_label(label: &[u8]) -> Result<(), ServerNameError> {
    match label {
        [] => Err(ServerNameError::EmptyLabel),
        [b'-', ..] | [.., b'-'] => Err(ServerNameError::InvalidCharacter),
        _ if label.len() > 63 => Err(ServerNameError::TooLong),
        _ if label.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') => Ok(()),
        _ => Err(ServerNameError::InvalidCharacter),
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ServerNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty",
            Self::TooLong => "is longer than 253 bytes, or has a label longer than 63",
            Self::TrailingDot => "ends in a dot; leave it out",
            Self::EmptyLabel => "has an empty label (two dots in a row, or one at the start)",
            Self::InvalidCharacter => {
                "has a character that host names do not have; write an international name as its \
                 A-label (xn--…)"
            }
            Self::IpAddress => "is an IP address; TLS clients send no server name for those",
        })
    }
}

/// Pattern of a route: one host, all hosts one label below a domain, or all names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Full name, such as `a.test`.
    Exact(ServerName),
    /// Wildcard such as `*.a.test`: matches names with one more label than this suffix.
    Wildcard(ServerName),
    /// Catch-all `*`: matches all names that no other route has, and connections without a name.
    Default,
}

impl FromStr for Pattern {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        match text.strip_prefix("*.") {
            Some(suffix) => ServerName::parse(suffix.as_bytes()).map(Self::Wildcard),
            None if text == "*" => Ok(Self::Default),
            None => ServerName::parse(text.as_bytes()).map(Self::Exact),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Default => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_strict() {
        let long_label = "a".repeat(64);
        let long_name = ["abc"; 64].join(".");
        let table: &[(&[u8], Result<&str, ServerNameError>)] = &[
            (b"a.test", Ok("a.test")),
            (b"A.TeSt", Ok("a.test")),
            (b"localhost", Ok("localhost")),
            (b"_dmarc.x-1.test", Ok("_dmarc.x-1.test")),
            (b"xn--bcher-kva.test", Ok("xn--bcher-kva.test")),
            (b"1.2.3.test", Ok("1.2.3.test")),
            (b"", Err(ServerNameError::Empty)),
            (b"a.test.", Err(ServerNameError::TrailingDot)),
            (b".", Err(ServerNameError::TrailingDot)),
            (b".a", Err(ServerNameError::EmptyLabel)),
            (b"a..b", Err(ServerNameError::EmptyLabel)),
            (b"a.test\0.evil.test", Err(ServerNameError::InvalidCharacter)),
            ("bücher.test".as_bytes(), Err(ServerNameError::InvalidCharacter)),
            (b"a b.test", Err(ServerNameError::InvalidCharacter)),
            (b"-a.test", Err(ServerNameError::InvalidCharacter)),
            (b"a-.test", Err(ServerNameError::InvalidCharacter)),
            (b"*.test", Err(ServerNameError::InvalidCharacter)),
            (b"[::1]", Err(ServerNameError::InvalidCharacter)),
            (b"fe80::1", Err(ServerNameError::InvalidCharacter)),
            (b"10.0.0.1", Err(ServerNameError::IpAddress)),
            (b"1", Err(ServerNameError::IpAddress)),
            (long_label.as_bytes(), Err(ServerNameError::TooLong)),
            (long_name.as_bytes(), Err(ServerNameError::TooLong)),
        ];
        for (bytes, want) in table {
            let got = ServerName::parse(bytes);
            assert_eq!(got.as_ref().map(ServerName::as_str), want.as_ref().copied(), "{bytes:?}");
        }
    }

    #[test]
    fn a_pattern_prints_as_it_was_written() {
        for text in ["a.test", "*.a.test", "*"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert_eq!("*.*.test".parse::<Pattern>(), Err(ServerNameError::InvalidCharacter));
        assert_eq!("a*.test".parse::<Pattern>(), Err(ServerNameError::InvalidCharacter));
    }
}
