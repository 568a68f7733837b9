//! Where a back end is.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a back end is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendAddr {
    /// An address and port.
    Ip(SocketAddr),
    /// A host name, resolved again when its TTL ends, and a port.
    Host(String, u16),
    /// A Unix socket on this host, by its absolute path.
    Unix(PathBuf),
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
