//! `[[route]]`: names, the back ends they go to, and how connections to these are made.

use std::fmt;
use std::time::Duration;

use snisplit_common::balance::BalancePolicy;
use snisplit_common::decide::{AcmePolicy, RoutePolicy};
use snisplit_common::proxy_protocol::Version;
use snisplit_common::server_name::Pattern;

use super::backend_addr::BackendAddr;
use super::choices::{HealthCheckKind, SourceAddress};
use super::diagnostic::Diagnostics;
use super::located::{Located, Origin, Position};
use super::schema::{self, Forwarding};
use super::{defaults, value::Count};

/// Names and the back ends they go to.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The first name, which stands for the route in logs and metrics.
    pub label: String,
    /// `sni`
    pub names: Vec<Pattern>,
    /// `backends`
    pub backends: Vec<Backend>,
    /// Where HTTP-01 validations of its names go.
    pub http_backends: Vec<Backend>,
    /// Who answers ACME validations of its names.
    pub acme: AcmePolicy,
    /// PROXY header to send; `None` for `off`.
    pub send_proxy: Option<Version>,
    /// The source address that back ends see.
    pub source_address: SourceAddress,
    /// How connections are balanced over the back ends.
    pub balance: BalancePolicy,
    /// How back ends are checked.
    pub health_check: HealthCheck,
    /// Time in which a back end that came up grows to its full weight; 0 for `off`.
    pub slow_start: Duration,
    /// Where the route was written.
    pub origin: Origin,
}

/// A back end and its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backend {
    /// Where it is.
    pub address: BackendAddr,
    /// The address as text, which identifies the back end across reloads.
    pub name: String,
    /// Its share beside the others of its route, 0 to 256. With 0 it gets connections only if no
    /// other answers.
    pub weight: u16,
}

/// How back ends are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `type`; `None` for `off`.
    pub kind: Option<HealthCheckKind>,
    /// Time between two checks of a back end.
    pub interval: Duration,
    /// Successful checks in a row that make a back end up.
    pub rise: u32,
    /// Failed checks in a row that make a back end down.
    pub fall: u32,
}

impl RoutePolicy for Route {
    fn acme_policy(&self) -> AcmePolicy {
        self.acme
    }
}

impl Route {
    /// Whether the other route, of the same names, treats connections the same.
    pub fn same_behaviour(&self, other: &Self) -> bool {
        let Self { label, names, origin, .. } = other.clone();
        Self { label, names, origin, ..self.clone() } == *other
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The table of a route that is being validated.
#[derive(Clone, Copy)]
pub(super) struct RouteContext<'c> {
    /// `route` or `terminate`.
    pub(super) section: &'static str,
    pub(super) position: &'c Position,
}

impl RouteContext<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.section)
    }

    /// The route, with the defaults of the keys that only `[[route]]` has. `None` if it has no
    /// valid names or back ends; other problems are reported too.
    pub(super) fn build(&self, table: Forwarding, diagnostics: &mut Diagnostics) -> Option<Route> {
        self.report_missing(&table, diagnostics);
        let names = diagnostics.values(&self.key("sni"), table.sni);
        let backends = self.backends("backends", table.backends, diagnostics);
        let send_proxy = diagnostics.value(&self.key("send_proxy"), table.send_proxy);
        let source_position =
            table.source_address.as_ref().map_or(self.position, |item| &item.position).clone();
        let source_address = diagnostics.value(&self.key("source_address"), table.source_address);
        let balance = diagnostics.value(&self.key("balance"), table.balance);
        let health_check = self.health_check(table.health_check, diagnostics);
        let slow_start = diagnostics.value(&self.key("slow_start"), table.slow_start);
        let backends = backends.filter(|all| !all.is_empty());
        if let (Some(SourceAddress::Client), Some(backends)) = (source_address, &backends) {
            self.require_remote_ips(backends, &source_position, diagnostics);
        }
        let names = names?;
        Some(Route {
            label: names.first()?.to_string(),
            names,
            backends: backends?,
            http_backends: Vec::new(),
            acme: AcmePolicy::default(),
            send_proxy: send_proxy.flatten(),
            source_address: source_address.unwrap_or_default(),
            balance: balance.unwrap_or_default(),
            health_check,
            slow_start: slow_start.unwrap_or(defaults::OFF).unwrap_or(Duration::ZERO),
            origin: diagnostics.origin(self.position),
        })
    }

    fn report_missing(&self, table: &Forwarding, diagnostics: &mut Diagnostics) {
        if table.sni.is_empty() {
            let message = "the route has no name; add one, such as \"a.test\", \"*.a.test\" or \
                           \"*\"";
            diagnostics.report(self.position, &self.key("sni"), message);
        }
        if table.backends.is_empty() {
            let message = "the route has no back end; add one, such as \"10.0.0.5:443\"";
            diagnostics.report(self.position, &self.key("backends"), message);
        }
    }

    /// `None` if one of them is wrong.
    pub(super) fn backends(
        &self,
        key: &str,
        backends: Vec<Located<schema::Backend>>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<Backend>> {
        let build = |backend| self.backend(key, backend, diagnostics);
        let built: Vec<Option<Backend>> = backends.into_iter().map(build).collect();
        built.into_iter().collect()
    }

    fn backend(
        &self,
        key: &str,
        backend: Located<schema::Backend>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Backend> {
        let key = self.key(key);
        let Located { position, value } = backend;
        let table = match value {
            schema::Backend::Table(table) => table,
            schema::Backend::Address(value) => {
                let address = Some(Located { position: position.clone(), value });
                schema::BackendTable { address, weight: None }
            }
        };
        if table.address.is_none() {
            let message = "is missing; add an address, such as address = \"10.0.0.5:443\"";
            diagnostics.report(&position, &format!("{key}.address"), message);
        }
        let address = diagnostics.value(&key, table.address);
        let weight = match table.weight {
            Some(weight) => diagnostics.value(&format!("{key}.weight"), Some(weight))?,
            None => Count(defaults::WEIGHT),
        };
        let address = address?;
        Some(Backend { name: address.to_string(), address, weight: weight.0 as u16 })
    }

    fn health_check(
        &self,
        table: Option<Located<schema::HealthCheck>>,
        diagnostics: &mut Diagnostics,
    ) -> HealthCheck {
        let key = |name: &str| self.key(&format!("health_check.{name}"));
        let is_table = table.is_some();
        let Located { position, value: table } = table.unwrap_or_else(|| Located {
            position: self.position.clone(),
            value: schema::HealthCheck::default(),
        });
        if is_table && table.r#type.is_none() {
            let message = "is missing; add type = \"tcp\", \"tls\" or \"off\"";
            diagnostics.report(&position, &key("type"), message);
        }
        let kind = diagnostics.value(&key("type"), table.r#type);
        let interval = diagnostics.value(&key("interval"), table.interval);
        let rise = diagnostics.value(&key("rise"), table.rise);
        let fall = diagnostics.value(&key("fall"), table.fall);
        HealthCheck {
            kind: kind.flatten(),
            interval: interval.unwrap_or(defaults::HEALTH_CHECK_INTERVAL),
            rise: rise.map_or(defaults::RISE, |count| count.0),
            fall: fall.map_or(defaults::FALL, |count| count.0),
        }
    }

    /// `snisplit net` routes the replies of a back end by its address, so it must have one, and not
    /// one of this host.
    fn require_remote_ips(
        &self,
        backends: &[Backend],
        position: &Position,
        diagnostics: &mut Diagnostics,
    ) {
        let is_remote_ip = |backend: &&Backend| match &backend.address {
            BackendAddr::Ip(address) => !address.ip().is_loopback(),
            BackendAddr::Host(..) | BackendAddr::Unix(_) => false,
        };
        if let Some(other) = backends.iter().find(|backend| !is_remote_ip(backend)) {
            let message =
                format!("\"client\" needs back ends on other hosts, by IP address; {other} is not");
            diagnostics.report(position, &self.key("source_address"), message);
        }
    }
}
