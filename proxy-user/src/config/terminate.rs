//! `[[terminate]]`: names whose TLS ends at the agent.

use std::path::{Path, PathBuf};

use snisplit_common::server_name::Pattern;

use super::choices::{Challenge, HealthCheckKind};
use super::diagnostic::Diagnostics;
use super::located::{Position, Setting};
use super::route::Route;
use super::route::RouteContext;
use super::schema::{self, ForwardingTable as _};
use super::value::ReadableFile;

/// Names that this agent holds a certificate for, and the plaintext back ends behind them.
#[derive(Debug)]
pub struct Terminate {
    /// Names, back ends and how connections to these are made.
    pub route: Route,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// ALPN protocols to agree to, in order of preference.
    pub alpn: Vec<Vec<u8>>,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// An order, which the CA validates by this challenge.
    Acme(Challenge),
    /// Files, which are read again when one changes.
    Files {
        /// The chain, PEM.
        cert: PathBuf,
        /// The private key, PEM.
        key: PathBuf,
    },
}

/// Checks that a certificate chain and its key belong together and cover all names; else says why
/// not. `certs` provides it, so that the configuration does not depend on certificates.
pub(crate) type CertificateCheck = fn(&Path, &Path, &[Pattern]) -> Result<(), String>;

/// The tables for ordering certificates that the configuration has, valid or not.
#[derive(Clone, Copy)]
pub(super) struct AcmeCapabilities {
    pub(super) acme: bool,
    pub(super) dns: bool,
    pub(super) http: bool,
}

/// A `[[terminate]]` that is being validated.
pub(super) struct TerminateContext<'c> {
    pub(super) context: RouteContext<'c>,
    pub(super) capabilities: AcmeCapabilities,
    pub(super) check_certificate: CertificateCheck,
}

/// `cert` and `key`.
struct CertificateFiles {
    cert: Option<Setting<ReadableFile>>,
    key: Option<Setting<ReadableFile>>,
}

impl TerminateContext<'_> {
    /// `None` if a problem was reported that leaves nothing to serve.
    pub(super) fn build(
        &self,
        mut table: schema::Terminate,
        diagnostics: &mut Diagnostics,
    ) -> Option<Terminate> {
        let forwarding = table.take_forwarding();
        let check = forwarding.health_check.as_ref().and_then(|check| check.value.r#type.as_ref());
        let check_position = check.map_or(self.context.position, |item| &item.position).clone();
        let route = self.context.build(forwarding, diagnostics);
        let alpn = diagnostics.values("terminate.alpn", table.alpn);
        let route = route?;
        if route.health_check.kind == Some(HealthCheckKind::Tls) {
            let message = "back ends of [[terminate]] speak no TLS; one of off, tcp";
            diagnostics.report(&check_position, "terminate.health_check.type", message);
        }
        if route.names.contains(&Pattern::Default) {
            let message = "no certificate covers \"*\"; list the names";
            diagnostics.report(self.context.position, "terminate.sni", message);
        }
        let files = CertificateFiles { cert: table.cert, key: table.key };
        let certificate = match files {
            CertificateFiles { cert: None, key: None } => {
                Some(self.ordered_certificate(table.challenge, &route, diagnostics))
            }
            files => {
                if table.challenge.is_some() {
                    self.report_certificate(
                        "a certificate from files needs no challenge; remove one of the two",
                        diagnostics,
                    );
                }
                self.file_certificate(files, &route, diagnostics)
            }
        };
        let alpn = alpn?.into_iter().map(|protocol| protocol.0).collect();
        Some(Terminate { route, certificate: certificate?, alpn })
    }

    fn report_certificate(&self, message: &str, diagnostics: &mut Diagnostics) {
        diagnostics.report(self.context.position, "terminate.cert", message);
    }

    fn ordered_certificate(
        &self,
        challenge: Option<Setting<Challenge>>,
        route: &Route,
        diagnostics: &mut Diagnostics,
    ) -> CertificateSource {
        let position: Position =
            challenge.as_ref().map_or(self.context.position, |item| &item.position).clone();
        let is_given = challenge.is_some();
        let challenge = match diagnostics.value("terminate.challenge", challenge) {
            // What a wrong challenge would need is unknown.
            None if is_given => return CertificateSource::Acme(Challenge::default()),
            challenge => challenge.unwrap_or_default(),
        };
        for message in missing_requirements(challenge, self.capabilities, &route.names) {
            diagnostics.report(&position, "terminate.challenge", message);
        }
        CertificateSource::Acme(challenge)
    }

    fn file_certificate(
        &self,
        files: CertificateFiles,
        route: &Route,
        diagnostics: &mut Diagnostics,
    ) -> Option<CertificateSource> {
        let (cert, key) = match files {
            CertificateFiles { cert: Some(cert), key: Some(key) } => (cert, key),
            CertificateFiles { key: None, .. } => {
                let message = "the certificate's key is missing; add key = \"FILE\"";
                self.report_certificate(message, diagnostics);
                return None;
            }
            CertificateFiles { cert: None, .. } => {
                let message = "the key's certificate is missing; add cert = \"FILE\"";
                self.report_certificate(message, diagnostics);
                return None;
            }
        };
        let cert = diagnostics.value("terminate.cert", Some(cert));
        let key = diagnostics.value("terminate.key", Some(key));
        let (cert, key) = (cert?.0, key?.0);
        if let Err(message) = (self.check_certificate)(&cert, &key, &route.names) {
            self.report_certificate(&message, diagnostics);
        }
        Some(CertificateSource::Files { cert, key })
    }
}

/// What a challenge needs that the configuration does not have.
fn missing_requirements(
    challenge: Challenge,
    capabilities: AcmeCapabilities,
    names: &[Pattern],
) -> Vec<String> {
    let is_wild = |pattern: &&Pattern| matches!(pattern, Pattern::Wildcard(_));
    let wild = names.iter().find(is_wild).filter(|_| challenge != Challenge::Dns01);
    let wild = wild.map(|name| {
        format!("\"{name}\" can be validated by \"dns-01\" only (RFC 8555 §7.1.3), not by this")
    });
    let acme = (!capabilities.acme).then(|| {
        String::from("ordering certificates needs [acme] with a directory, or set cert and key")
    });
    let http = (challenge == Challenge::Http01 && !capabilities.http)
        .then(|| String::from("http-01 needs [http] with address = \"[::]:80\""));
    let dns = (challenge == Challenge::Dns01 && capabilities.acme && !capabilities.dns)
        .then(|| String::from("dns-01 needs [acme.dns] with a provider"));
    [wild, acme, http, dns].into_iter().flatten().collect()
}
