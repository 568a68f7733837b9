//! What the operator wants: a TOML file, flags that win over it, and errors that help.
//!
//! Text becomes [`Config`] in one step or not at all; nothing behind it is optional that must be
//! there. `check` and `run` go through the same code.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::decide::AcmeBypass;
use snisplit_common::route_table::RouteTable;

use crate::engine::EngineChoice;
use crate::telemetry::access_log::AccessLogFormat;

pub mod acme;
mod diagnostic;
mod file;
mod flags;
mod limits;
mod packet;
mod parse;
mod route;
mod route_table;
pub mod terminate;
mod validate;

pub use acme::AcmeConfig;
pub use diagnostic::ConfigErrors;
pub use flags::Overrides;
pub use limits::Limits;
pub use packet::PacketConfig;
pub use route::{Backend, BackendAddr, HealthCheck, HealthCheckKind, Route, SourceAddress};
pub use terminate::Terminate;

/// Everything `run` needs to know.
#[derive(Debug)]
pub struct Config {
    /// `instance`: the name of this agent among others of the host.
    pub instance: String,
    /// `engine`
    pub engine: EngineChoice,
    /// `acme_bypass`
    pub acme_bypass: AcmeBypass,
    /// `drain_timeout`: how long running connections may take to end after SIGTERM.
    pub drain_timeout: Duration,
    /// `[[listener]]`
    pub listeners: Vec<Listener>,
    /// `[[route]]`
    pub routes: RouteTable<Route>,
    /// `[[terminate]]`
    pub terminates: RouteTable<Arc<Terminate>>,
    /// `[acme]`
    pub acme: Option<AcmeConfig>,
    /// `[http] address`
    pub http: Option<SocketAddr>,
    /// `[limits]`
    pub limits: Limits,
    /// `[admin] address`; no admin port without it.
    pub admin: Option<SocketAddr>,
    /// `nameservers`; empty for those of /etc/resolv.conf.
    pub nameservers: Vec<SocketAddr>,
    /// `[packet]`
    pub packet: PacketConfig,
    /// `access_log`; `-` is standard output.
    pub access_log: Option<PathBuf>,
    /// `access_log_format`
    pub access_log_format: AccessLogFormat,
}

/// An address to accept on.
#[derive(Clone, Debug)]
pub struct Listener {
    /// `address`
    pub address: SocketAddr,
    /// `client_hello_timeout`: from accept to a whole hello.
    pub client_hello_timeout: Duration,
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
pub const DEFAULT_CLIENT_HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The time an attempt to reach a back end may take unless `[limits]` says otherwise.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two checks of a back end unless the route says otherwise.
pub const DEFAULT_HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Answers, and failures, in a row that change what is believed of a back end.
pub const DEFAULT_RISE_FALL: (u32, u32) = (2, 3);
/// The share of a back end unless its `weight` says otherwise.
pub const DEFAULT_WEIGHT: u16 = 1;
/// The name of an agent that is given none.
pub const DEFAULT_INSTANCE: &str = "default";
/// The time a drain may take unless the config says otherwise.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

impl Config {
    /// Everything that connections are forwarded by, decrypted or not.
    pub fn all_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().chain(self.terminates.iter().map(|one| &one.route))
    }

    /// The listener of an address; its defaults once the address is no longer listened on.
    pub fn listener_or_default(&self, address: SocketAddr) -> Listener {
        let same = |listener: &&Listener| listener.address == address;
        let found = self.listeners.iter().find(same).cloned();
        found.unwrap_or_else(|| Listener {
            address,
            client_hello_timeout: DEFAULT_CLIENT_HELLO_TIMEOUT,
            proxy_protocol_from: Vec::new(),
            starttls: None,
        })
    }

    /// Reads the file, if one is named, and lays the flags over it.
    pub fn load(path: Option<&std::path::Path>, flags: &Overrides) -> Result<Self, ConfigErrors> {
        let mut draft = match path {
            Some(path) => file::read(path)?,
            None => validate::Draft::default(),
        };
        flags.apply_to(&mut draft);
        validate::build(draft).map_err(|problems| match path {
            Some(path) => problems.with_file(path),
            None => problems,
        })
    }
}

impl Listener {
    /// Whether a peer must send a PROXY header.
    pub fn requires_proxy_header(&self, peer: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|net| net.contains(&peer))
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
