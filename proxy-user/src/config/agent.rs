//! The configuration of an agent, valid and complete.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use snisplit_common::decide::AcmeBypass;
use snisplit_common::route_table::RouteTable;

use super::acme::AcmeConfig;
use super::choices::Starttls;
use super::defaults;
use super::limits::Limits;
use super::packet::PacketConfig;
use super::route::Route;
use super::terminate::Terminate;
use crate::engine::EngineChoice;
use crate::telemetry::access_log::AccessLogFormat;

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
}

impl Listener {
    /// Whether a peer must send a PROXY header.
    pub fn requires_proxy_header(&self, peer: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|net| net.contains(&peer))
    }
}
