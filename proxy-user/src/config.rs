//! What the operator wants: a TOML file, flags that win over it, and errors that help.
//!
//! Text becomes [`Config`] in one step or not at all; nothing behind it is optional that must be
//! there. `check` and `run` go through the same code.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::decide::{AcmeBypass, AcmePolicy, Policy};
use snisplit_common::limits::HELLO_BYTES;
use snisplit_common::name::Pattern;
use snisplit_common::proxy_protocol::Version;
use snisplit_common::routes::Routes;

use crate::engine::Choice;

mod build;
mod file;
mod flags;
mod limits;
mod problem;
mod value;

pub use flags::Overrides;
pub use problem::Problems;

/// Everything `run` needs to know.
#[derive(Debug)]
pub struct Config {
    /// `engine`
    pub engine: Choice,
    /// `acme_bypass`
    pub acme_bypass: AcmeBypass,
    /// `drain`: how long running connections may take to end after SIGTERM.
    pub drain: Duration,
    /// `[[listener]]`
    pub listeners: Vec<Listener>,
    /// `[[route]]`
    pub routes: Routes<Route>,
    /// `[limits]`
    pub limits: Limits,
    /// `[admin] address`; no admin port without it.
    pub admin: Option<SocketAddr>,
    /// `access_log`; `-` is standard output.
    pub access_log: Option<PathBuf>,
}

/// An address to accept on.
#[derive(Clone, Debug)]
pub struct Listener {
    /// `address`
    pub address: SocketAddr,
    /// `hello_timeout`: from accept to a whole hello.
    pub hello_timeout: Duration,
    /// `proxy_protocol_from`: who must send a PROXY header; all others must not.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// Names and the back ends they go to.
#[derive(Debug)]
pub struct Route {
    /// The first name, which stands for the route in logs and counters.
    pub label: String,
    /// `sni`
    pub names: Vec<Pattern>,
    /// `backends`
    pub backends: Vec<Backend>,
    /// `acme`
    pub acme: AcmePolicy,
    /// `send_proxy`; `None` for `off`.
    pub send_proxy: Option<Version>,
    /// Where it was written.
    pub origin: Origin,
    turn: AtomicUsize,
}

/// Where a back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// An address and port.
    Address(SocketAddr),
    /// A host name, resolved anew for each connection, and a port.
    Name(String, u16),
}

/// Bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `hello_bytes`: of the handshake message, without its header of 4.
    pub hello_bytes: usize,
    /// `dial_timeout`: for each attempt.
    pub dial_timeout: Duration,
    /// `max_connections`
    pub max_connections: usize,
    /// `max_peeking`: connections that have not said their hello.
    pub max_peeking: usize,
    /// `per_source`: concurrent flows of an IPv4 address or an IPv6 /64.
    pub per_source: usize,
    /// `accept_rate`: connections a second; 0 is no limit.
    pub accept_rate: u32,
    /// `idle_timeout`; `None` for `off`.
    pub idle_timeout: Option<Duration>,
    /// `keepalive`: idle time before the first probe, on both legs; `None` for `off`.
    pub keepalive: Option<Duration>,
    /// `user_timeout`: how long sent data may stay unacknowledged; `None` for the kernel's own.
    pub user_timeout: Option<Duration>,
    /// `backends_allowed`: where back ends may be; empty for anywhere.
    pub backends_allowed: Vec<IpNet>,
}

/// Where a piece of configuration was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the file, counted from 1.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// A flag, as it was typed.
    Flag(String),
}

/// The time a hello may take unless a listener says otherwise.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The time an attempt to reach a back end may take unless `[limits]` says otherwise.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The time a drain may take unless the config says otherwise.
pub const DRAIN: Duration = Duration::from_secs(30);

impl Config {
    /// The listener of an address; its defaults once the address is no longer listened on.
    pub fn listener(&self, address: SocketAddr) -> Listener {
        let same = |listener: &&Listener| listener.address == address;
        let found = self.listeners.iter().find(same).cloned();
        found.unwrap_or_else(|| Listener {
            address,
            hello_timeout: HELLO_TIMEOUT,
            proxy_protocol_from: Vec::new(),
        })
    }

    /// Reads the file, if one is named, and lays the flags over it.
    pub fn load(path: Option<&std::path::Path>, flags: &Overrides) -> Result<Self, Problems> {
        let mut draft = match path {
            Some(path) => file::read(path)?,
            None => build::Draft::default(),
        };
        flags.lay_over(&mut draft);
        build::build(draft).map_err(|problems| match path {
            Some(path) => problems.of(path),
            None => problems,
        })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_bytes: HELLO_BYTES,
            dial_timeout: DIAL_TIMEOUT,
            max_connections: 100_000,
            max_peeking: 10_000,
            per_source: 1_000,
            accept_rate: 0,
            idle_timeout: None,
            keepalive: Some(Duration::from_secs(60)),
            user_timeout: None,
            backends_allowed: Vec::new(),
        }
    }
}

impl Limits {
    /// Whether a back end may be at this address.
    pub fn allows_backend(&self, address: IpAddr) -> bool {
        let nets = &self.backends_allowed;
        nets.is_empty() || nets.iter().any(|net| net.contains(&address.to_canonical()))
    }
}

impl Listener {
    /// Whether a peer must send a PROXY header.
    pub fn wants_header(&self, peer: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|net| net.contains(&peer))
    }
}

impl Policy for Route {
    fn acme(&self) -> AcmePolicy {
        self.acme
    }
}

impl Route {
    /// Whether a connection would fare the same on the other route of the same names.
    pub fn does_the_same(&self, other: &Self) -> bool {
        self.backends == other.backends
            && self.acme == other.acme
            && self.send_proxy == other.send_proxy
    }

    /// All back ends, each call starting with the next one (`balance = "round-robin"`).
    pub fn backends_in_turn(&self) -> impl Iterator<Item = &Backend> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % self.backends.len();
        self.backends[first..].iter().chain(&self.backends[..first])
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}
