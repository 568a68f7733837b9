//! Configuration: a TOML file, flags that win over it, and diagnostics.
//!
//! `schema` has the tables and keys as they are written. `validate` turns them into [`Config`] in
//! one step, or reports all problems. `check` and `run` use the same code. Nothing here probes the
//! kernel, and [`Config`] holds no state of the running agent.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::decide::AcmeBypass;
use snisplit_common::route_table::RouteTable;
use snisplit_common::server_name::Pattern;

use crate::engine::EngineChoice;
use crate::telemetry::access_log::AccessLogFormat;

pub mod acme;
mod choices;
pub mod defaults;
mod diagnostic;
mod file;
mod flags;
pub(crate) mod keys;
mod limits;
mod located;
mod packet;
mod route;
mod route_table;
mod schema;
pub mod terminate;
mod validate;
mod value;

use diagnostic::Diagnostics;

pub use acme::AcmeConfig;
pub use diagnostic::ConfigErrors;
pub use flags::Overrides;
pub use limits::Limits;
pub use packet::{HookChoice, PacketConfig};
pub use route::{Backend, BackendAddr, HealthCheck, HealthCheckKind, Route, SourceAddress};
pub use terminate::{Challenge, Terminate};

/// A valid configuration.
#[derive(Debug)]
pub struct Config {
    /// The name of this agent among others of the host.
    pub instance: String,
    /// The engine that moves the bytes of flows.
    pub engine: EngineChoice,
    /// Which ACME validations go to back ends.
    pub acme_bypass: AcmeBypass,
    /// Time that running connections may take to end after SIGTERM.
    pub drain_timeout: Duration,
    /// `[[listener]]`
    pub listeners: Vec<Arc<Listener>>,
    /// `[[route]]`
    pub routes: RouteTable<Route>,
    /// `[[terminate]]`
    pub terminates: RouteTable<Arc<Terminate>>,
    /// `[acme]`
    pub acme: Option<AcmeConfig>,
    /// Address of the port for HTTP-01 validations.
    pub http: Option<SocketAddr>,
    /// `[limits]`
    pub limits: Limits,
    /// Address of the admin port.
    pub admin: Option<SocketAddr>,
    /// Empty for those of /etc/resolv.conf.
    pub nameservers: Vec<SocketAddr>,
    /// `[packet]`
    pub packet: PacketConfig,
    /// `-` is standard output.
    pub access_log: Option<PathBuf>,
    /// Format of the lines of the access log.
    pub access_log_format: AccessLogFormat,
}

/// An address to accept on.
#[derive(Debug)]
pub struct Listener {
    /// The address.
    pub address: SocketAddr,
    /// Time from accept to a complete ClientHello.
    pub client_hello_timeout: Duration,
    /// Networks whose members must send a PROXY header; all others must not.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Protocol that precedes TLS; `None` for `off`.
    pub starttls: Option<Starttls>,
}

/// A protocol that precedes TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starttls {
    /// PostgreSQL's `SSLRequest`.
    Postgres,
}

/// Where a part of the configuration was written.
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

/// Checks that a certificate chain and its key belong together and cover all names; else says why
/// not. `certs` provides it, so that the configuration does not depend on certificates.
pub(crate) type CertificateCheck = fn(&Path, &Path, &[Pattern]) -> Result<(), String>;

impl Config {
    /// The routes of `[[route]]` and `[[terminate]]`.
    pub fn all_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().chain(self.terminates.iter().map(|terminate| &terminate.route))
    }

    /// The listener of an address; one with the defaults if a reload has removed it.
    pub fn listener_or_default(&self, address: SocketAddr) -> Arc<Listener> {
        let found = self.listeners.iter().find(|listener| listener.address == address);
        found.cloned().unwrap_or_else(|| {
            Arc::new(Listener {
                address,
                client_hello_timeout: defaults::CLIENT_HELLO_TIMEOUT,
                proxy_protocol_from: Vec::new(),
                starttls: None,
            })
        })
    }

    /// Reads the file, if there is one, and lets the flags win over it.
    ///
    /// # Errors
    ///
    /// All problems of the file and the flags.
    pub(crate) fn load(
        path: Option<&Path>,
        flags: &Overrides,
        check_certificate: CertificateCheck,
    ) -> Result<Self, ConfigErrors> {
        let (source, mut file) = match path.map(file::read).transpose()? {
            Some(parsed) => (Some(parsed.source), parsed.file),
            None => (None, schema::ConfigFile::default()),
        };
        let mut diagnostics = Diagnostics::new(source);
        flags.apply_to(&mut file, &mut diagnostics);
        let config = validate::build(file, check_certificate, &mut diagnostics);
        diagnostics.finish(config)
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
