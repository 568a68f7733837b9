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
use snisplit_common::balance::Balance;
use snisplit_common::decide::{AcmeBypass, AcmePolicy, Policy};
use snisplit_common::name::Pattern;
use snisplit_common::proxy_protocol::Version;
use snisplit_common::routes::Routes;

use crate::engine::Choice;
use crate::observe::access_log::Format;

mod build;
mod file;
mod flags;
mod limits;
mod problem;
mod routes;
mod value;

pub use flags::Overrides;
pub use limits::Limits;
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
    /// `nameservers`; empty for those of /etc/resolv.conf.
    pub nameservers: Vec<SocketAddr>,
    /// `access_log`; `-` is standard output.
    pub access_log: Option<PathBuf>,
    /// `access_log_format`
    pub access_log_format: Format,
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
    /// `starttls`; `None` for `off`.
    pub starttls: Option<Starttls>,
}

/// A protocol whose clients ask for TLS first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starttls {
    /// PostgreSQL's `SSLRequest`.
    Postgres,
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
    /// `source`
    pub source: Source,
    /// `balance`
    pub balance: Balance,
    /// `check`; `None` for `off`.
    pub check: Option<Check>,
    /// `check_interval`
    pub check_interval: Duration,
    /// `rise`: answers in a row that make a back end up.
    pub rise: u32,
    /// `fall`: failures in a row that make it down.
    pub fall: u32,
    /// `slow_start`: how long a back end that came up takes to its full share; 0 for `off`.
    pub slow_start: Duration,
    /// Where it was written.
    pub origin: Origin,
    turn: AtomicUsize,
}

/// Where connections go, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Where it is.
    pub place: Place,
    /// Its share beside the others of its route, 0 to 256; 0 is nothing unless no other answers.
    pub weight: u16,
}

/// The address that a back end sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The agent's own.
    #[default]
    Own,
    /// The client's (IP_TRANSPARENT); `snisplit net` sets up the way back.
    Client,
}

/// How a back end is asked whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// By a TCP connection.
    Tcp,
    /// By a TLS handshake with the route's first exact name.
    Tls,
}

/// Where a back end is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// An address and port.
    Address(SocketAddr),
    /// A host name, resolved as often as its TTL says, and a port.
    Name(String, u16),
    /// A unix socket on this host, by its absolute path.
    Unix(PathBuf),
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
/// The time between two checks of a back end unless the route says otherwise.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Answers, and failures, in a row that change what is believed of a back end.
pub const RISE_FALL: (u32, u32) = (2, 3);
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
            starttls: None,
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
            && (self.send_proxy, self.source) == (other.send_proxy, other.source)
            && self.balance == other.balance
            && (self.check, self.check_interval) == (other.check, other.check_interval)
            && (self.rise, self.fall, self.slow_start) == (other.rise, other.fall, other.slow_start)
    }

    /// The number of this connection on the route.
    pub fn take_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Address(address) => write!(f, "{address}"),
            Place::Name(host, port) => write!(f, "{host}:{port}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
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
