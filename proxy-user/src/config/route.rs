//! `[[route]]`: names, the back ends they go to, and how these are dialled.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use snisplit_common::balance::BalancePolicy;
use snisplit_common::decide::{AcmePolicy, RoutePolicy};
use snisplit_common::proxy_protocol::Version;
use snisplit_common::server_name::Pattern;

use super::Origin;

/// Names and the back ends they go to.
#[derive(Debug)]
pub struct Route {
    /// The first name, which stands for the route in logs and counters.
    pub label: String,
    /// `sni`
    pub names: Vec<Pattern>,
    /// `backends`
    pub backends: Vec<Backend>,
    /// `http_backends`: where HTTP-01 validations of its names go.
    pub http_backends: Vec<Backend>,
    /// `acme`
    pub acme: AcmePolicy,
    /// `send_proxy`; `None` for `off`.
    pub send_proxy: Option<Version>,
    /// `source_address`
    pub source_address: SourceAddress,
    /// `balance`
    pub balance: BalancePolicy,
    /// `health_check`
    pub health_check: HealthCheck,
    /// `slow_start`: how long a back end that came up takes to its full share; 0 for `off`.
    pub slow_start: Duration,
    /// Where it was written.
    pub origin: Origin,
    pub(super) round: AtomicUsize,
}

/// How back ends are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `type`; `None` for `off`.
    pub kind: Option<HealthCheckKind>,
    /// `interval`: time between two checks of a back end.
    pub interval: Duration,
    /// `rise`: successful checks in a row that make a back end up.
    pub rise: u32,
    /// `fall`: failed checks in a row that make a back end down.
    pub fall: u32,
}

/// Where connections go, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Where it is.
    pub address: BackendAddr,
    /// The same in words, by which it is known from one configuration to the next.
    pub name: String,
    /// Its share beside the others of its route, 0 to 256; 0 is nothing unless no other answers.
    pub weight: u16,
}

/// The address that a back end sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceAddress {
    /// The agent's own.
    #[default]
    Local,
    /// The client's (IP_TRANSPARENT); `snisplit net` sets up the way back.
    Client,
}

/// How a back end is asked whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HealthCheckKind {
    /// By a TCP connection.
    Tcp,
    /// By a TLS handshake with the route's first exact name.
    Tls,
}

/// Where a back end is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendAddr {
    /// An address and port.
    Ip(SocketAddr),
    /// A host name, resolved as often as its TTL says, and a port.
    Host(String, u16),
    /// A unix socket on this host, by its absolute path.
    Unix(PathBuf),
}

impl RoutePolicy for Route {
    fn acme_policy(&self) -> AcmePolicy {
        self.acme
    }
}

impl Route {
    /// Whether a connection would fare the same on the other route of the same names.
    pub fn same_behaviour(&self, other: &Self) -> bool {
        self.backends == other.backends
            && self.http_backends == other.http_backends
            && self.acme == other.acme
            && (self.send_proxy, self.source_address) == (other.send_proxy, other.source_address)
            && self.balance == other.balance
            && (self.health_check, self.slow_start) == (other.health_check, other.slow_start)
    }

    /// The number of this connection on the route.
    pub fn next_round(&self) -> usize {
        self.round.fetch_add(1, Ordering::Relaxed)
    }
}

impl Backend {
    /// A back end that is named by its address.
    pub(super) fn new(address: BackendAddr, weight: u16) -> Self {
        Self { name: address.to_string(), address, weight }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
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
