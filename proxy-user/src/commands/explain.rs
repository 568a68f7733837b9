//! `snisplit explain`: shows how the agent would handle a connection, and why. It calls [`decide`], as
//! the agent does.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use snisplit_common::client_hello::{ClientHello, ClientHelloParser, ParseStatus, Sni};
use snisplit_common::decide::{
    Action, CertificateLookup, Decision, ManagedName, NameClass, decide,
};
use snisplit_common::server_name::ServerName;

use super::counted;
use crate::cli::ConnectionArgs;
use crate::config::Terminate;
use crate::config::terminate::CertificateSource;
use crate::config::{Config, Route};

/// Certificates of an agent that has obtained all of them and has no pending order.
struct AllCertificatesReady<'c>(&'c Config);

impl<'c> CertificateLookup for AllCertificatesReady<'c> {
    type Certificate = &'c Terminate;

    fn pending_challenge(&self, _: &ServerName) -> Option<&'c Terminate> {
        None
    }

    fn managed_name(&self, name: &ServerName) -> Option<ManagedName<&'c Terminate>> {
        let owner = self.0.terminates.lookup(Some(name))?;
        Some(ManagedName { kind: owner.kind, certificate: Some(owner.route) })
    }
}

type ConfigDecision<'c> = Decision<'c, Route, &'c Terminate>;

/// How the agent would handle a connection.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Of the file of `--client-hello`.
    client_hello: Option<HelloSummary>,
    server_name: Option<String>,
    /// What is wrong with the server name.
    server_name_error: Option<String>,
    alpn: Vec<String>,
    /// Number of offered protocols that `alpn` omits.
    alpn_omitted: usize,
    is_acme_validation: bool,
    route: Option<RouteSummary>,
    decision: DecisionSummary,
    /// Of a forwarded connection.
    engine: Option<EngineSummary>,
    /// The decision on an ACME validation of the name, if this is none.
    acme_validation: Option<DecisionSummary>,
}

/// What a ClientHello has.
#[derive(Debug, Serialize)]
struct HelloSummary {
    bytes: usize,
    records: usize,
    versions: Vec<String>,
    ech: bool,
    early_data: bool,
    bytes_after: usize,
}

/// The route that owns a name.
#[derive(Debug, Serialize)]
struct RouteSummary {
    label: String,
    #[serde(rename = "match")]
    match_kind: &'static str,
    /// Where it was written.
    origin: String,
}

/// A decision and its reason.
#[derive(Debug, Serialize)]
struct DecisionSummary {
    action: &'static str,
    backends: Vec<String>,
    /// How the certificate is ordered, or its file.
    certificate: Option<String>,
    alert: Option<&'static str>,
    /// The code of the alert on the wire.
    alert_code: Option<u8>,
    reason: &'static str,
    description: &'static str,
}

/// The engine of a configuration.
#[derive(Debug, Serialize)]
struct EngineSummary {
    name: String,
    description: &'static str,
}

impl Explanation {
    /// Explains how a connection would be handled.
    ///
    /// # Errors
    ///
    /// The file of `--client-hello` cannot be read or holds no ClientHello.
    pub fn new(config: &Config, args: &ConnectionArgs) -> Result<Self> {
        let (hello, client_hello) = match &args.client_hello {
            Some(path) => {
                let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
                let hello = parse_client_hello(config, &bytes)?;
                let summary = HelloSummary::new(&hello, bytes.len());
                (hello, Some(summary))
            }
            None => (client_hello_from_args(args), None),
        };
        let decision =
            decide(&hello, &config.routes, config.acme_bypass, &AllCertificatesReady(config));
        let (server_name, server_name_error) = match &hello.sni {
            Sni::Name(name) => (Some(name.to_string()), None),
            Sni::Absent => (None, None),
            Sni::Invalid(error) => (None, Some(error.to_string())),
        };
        let engine = matches!(decision.action, Action::Forward(_)).then(|| EngineSummary {
            name: config.engine.to_string(),
            description: config.engine.description(),
        });
        let mut explanation = Self {
            client_hello,
            server_name,
            server_name_error,
            alpn: hello.alpn.iter().map(|one| one.escape_ascii().to_string()).collect(),
            alpn_omitted: hello.alpn_omitted,
            is_acme_validation: hello.is_acme_validation(),
            route: RouteSummary::new(config, &hello, &decision),
            decision: DecisionSummary::new(&decision),
            engine,
            acme_validation: None,
        };
        if !explanation.is_acme_validation {
            let alpn = vec![b"acme-tls/1".to_vec()];
            let hello = ClientHello { alpn, alpn_omitted: 0, ..hello };
            let decision =
                decide(&hello, &config.routes, config.acme_bypass, &AllCertificatesReady(config));
            explanation.acme_validation = Some(DecisionSummary::new(&decision));
        }
        Ok(explanation)
    }

    fn server_name_text(&self) -> String {
        match (&self.server_name, &self.server_name_error) {
            (Some(name), _) => name.clone(),
            (None, Some(error)) => format!("none: what the client sends {error}"),
            (None, None) => "none".into(),
        }
    }

    fn alpn_text(&self) -> String {
        match (self.is_acme_validation, self.alpn.is_empty()) {
            (true, _) => "acme-tls/1 and nothing else: an ACME validation (RFC 8737)".into(),
            (false, true) => "none".into(),
            (false, false) if self.alpn_omitted > 0 => {
                format!("{} and {} more", self.alpn.join(", "), self.alpn_omitted)
            }
            (false, false) => self.alpn.join(", "),
        }
    }
}

/// One fact per line.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |title: &str, text: &dyn fmt::Display| writeln!(f, "{title:<16} {text}");
        if let Some(hello) = &self.client_hello {
            line("hello", hello)?;
        }
        line("server name", &self.server_name_text())?;
        line("ALPN", &self.alpn_text())?;
        match &self.route {
            Some(route) => line("route", route)?,
            None => line("route", &"none")?,
        }
        line("decision", &self.decision)?;
        line("because", &self.decision.description)?;
        if let Some(engine) = &self.engine {
            line("engine", &engine.description)?;
        }
        if let Some(decision) = &self.acme_validation {
            line("ACME validation", &format!("{decision}: {}", decision.description))?;
        }
        Ok(())
    }
}

fn parse_client_hello(config: &Config, bytes: &[u8]) -> Result<ClientHello> {
    match ClientHelloParser::new(config.limits.max_client_hello_bytes).parse(bytes) {
        ParseStatus::Complete(hello) => Ok(*hello),
        ParseStatus::Incomplete { needed } => bail!(
            "the ClientHello is incomplete: the file has {} of at least {needed} bytes; the agent \
             would wait for the rest, and then reject with alert handshake_failure",
            bytes.len()
        ),
        ParseStatus::Invalid(error) => {
            bail!("no ClientHello ({}); rejected with alert {}", error.label(), error.alert())
        }
    }
}

fn client_hello_from_args(args: &ConnectionArgs) -> ClientHello {
    ClientHello {
        sni: match &args.sni {
            Some(name) => ServerName::parse(name.as_bytes()).map_or_else(Sni::Invalid, Sni::Name),
            None => Sni::Absent,
        },
        alpn: args.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
        alpn_omitted: 0,
        versions: Vec::new(),
        early_data: false,
        ech: false,
        wire_len: 0,
        records: 0,
    }
}

impl HelloSummary {
    fn new(hello: &ClientHello, available: usize) -> Self {
        Self {
            bytes: hello.wire_len,
            records: hello.records,
            versions: hello.versions.iter().filter_map(|one| tls_version_name(*one)).collect(),
            ech: hello.ech,
            early_data: hello.early_data,
            bytes_after: available.saturating_sub(hello.wire_len),
        }
    }
}

impl fmt::Display for HelloSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, records, versions, .. } = self;
        write!(f, "{bytes} bytes in {}, {}", counted(*records, "record"), versions.join(", "))?;
        if self.ech {
            f.write_str(", ECH (or GREASE that looks like it)")?;
        }
        if self.early_data {
            f.write_str(", early data offered")?;
        }
        match self.bytes_after {
            0 => Ok(()),
            bytes => write!(f, ", {bytes} bytes behind it"),
        }
    }
}

/// Returns the name of a TLS version; `None` for GREASE (RFC 8701).
fn tls_version_name(code: u16) -> Option<String> {
    match code {
        0x0301 => Some("TLS 1.0".into()),
        0x0302 => Some("TLS 1.1".into()),
        0x0303 => Some("TLS 1.2".into()),
        0x0304 => Some("TLS 1.3".into()),
        grease if grease & 0x0f0f == 0x0a0a => None,
        other => Some(format!("version {other:#06x}")),
    }
}

impl RouteSummary {
    /// `None` if no route owns the name.
    fn new(config: &Config, hello: &ClientHello, decision: &ConfigDecision<'_>) -> Option<Self> {
        let name = match &hello.sni {
            Sni::Name(name) => Some(name),
            Sni::Absent | Sni::Invalid(_) => None,
        };
        let (kind, route) = match decision.name_class {
            NameClass::Routed(_) => {
                config.routes.lookup(name).map(|owner| (owner.kind, owner.route))?
            }
            NameClass::Managed => {
                let owner = config.terminates.lookup(name)?;
                (owner.kind, &owner.route.route)
            }
            NameClass::Nameless | NameClass::Unrouted => return None,
        };
        Some(Self {
            label: route.label.clone(),
            match_kind: kind.label(),
            origin: route.origin.to_string(),
        })
    }
}

impl fmt::Display for RouteSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, match_kind, origin } = self;
        write!(f, "{label} ({} match), {origin}", match_kind.replace('_', "-"))
    }
}

impl DecisionSummary {
    fn new(decision: &ConfigDecision<'_>) -> Self {
        let backends = |route: &Route| route.backends.iter().map(ToString::to_string).collect();
        let (backends, certificate, alert) = match decision.action {
            Action::Terminate(terminate) => {
                let certificate = match &terminate.certificate {
                    CertificateSource::Acme(challenge) => {
                        format!("ordered by {}", challenge.label())
                    }
                    CertificateSource::Files { cert, .. } => format!("in {}", cert.display()),
                };
                (backends(&terminate.route), Some(certificate), None)
            }
            Action::Reject(alert) => (Vec::new(), None, Some(alert)),
            Action::Forward(route) => (backends(route), None, None),
        };
        Self {
            action: decision.action.label(),
            backends,
            certificate,
            alert: alert.map(|alert| alert.name()),
            alert_code: alert.map(|alert| alert as u8),
            reason: decision.reason.label(),
            description: decision.reason.description(),
        }
    }
}

impl fmt::Display for DecisionSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backends = self.backends.join(" or ");
        match (self.alert.zip(self.alert_code), &self.certificate) {
            (Some((name, code)), _) => write!(f, "reject with alert {code} {name}"),
            (None, Some(certificate)) => {
                write!(f, "terminate with the certificate {certificate}, plaintext to {backends}")
            }
            (None, None) => write!(f, "forward to {backends}"),
        }
    }
}
