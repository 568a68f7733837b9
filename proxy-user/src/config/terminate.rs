//! `[[terminate]]`: names whose TLS ends here.

use std::path::PathBuf;

use snisplit_common::server_name::Pattern;

use super::diagnostic::Diagnostic;
use super::route_table::{self, DraftRoute};
use super::validate::{Diagnostics, Draft, Located};
use super::{HealthCheckKind, Route, parse};
use crate::certs::pem;

/// Names that this agent holds a certificate for, and the plaintext back ends behind them.
#[derive(Debug)]
pub struct Terminate {
    /// Names, back ends and how they are dialled.
    pub route: Route,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// `alpn`: protocols to agree to, in order of preference.
    pub alpn: Vec<Vec<u8>>,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// `challenge`: it is ordered.
    Acme(Challenge),
    /// `cert` and `key`: it is read, and read again when a file changes.
    Files {
        /// The chain, PEM.
        cert: PathBuf,
        /// The key, PEM.
        key: PathBuf,
    },
}

/// How a CA is shown that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Challenge {
    /// `tls-alpn-01` (RFC 8737), on the listeners.
    TlsAlpn01,
    /// `http-01` (RFC 8555 §8.3), on `[http]`.
    Http01,
    /// `dns-01` (RFC 8555 §8.4), by `[acme.dns]`.
    Dns01,
}

impl Challenge {
    /// The name in the IANA registry.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Http01 => "http-01",
            Self::Dns01 => "dns-01",
        }
    }
}

/// A `[[terminate]]` that is not understood yet.
#[derive(Debug)]
pub(super) struct DraftTerminate {
    pub(super) route: DraftRoute,
    pub(super) challenge: Option<Located<String>>,
    pub(super) cert: Option<Located<String>>,
    pub(super) key: Option<Located<String>>,
    pub(super) alpn: Vec<Located<String>>,
}

/// What the rest of the configuration has for ordering certificates, right or wrong.
#[derive(Clone, Copy)]
pub(super) struct AcmeCapabilities {
    pub(super) acme: bool,
    pub(super) dns: bool,
    pub(super) http: bool,
}

impl AcmeCapabilities {
    pub(super) fn from_draft(draft: &Draft) -> Self {
        let acme = draft.acme.as_ref();
        Self {
            acme: acme.is_some(),
            dns: acme.is_some_and(|acme| acme.dns.is_some()),
            http: draft.http.is_some(),
        }
    }
}

pub(super) fn build(
    draft: DraftTerminate,
    capabilities: AcmeCapabilities,
    diagnostics: &mut Diagnostics,
) -> Option<Terminate> {
    let DraftTerminate { route, challenge, cert, key, alpn } = draft;
    let origin = route.origin.clone();
    let check_origin =
        route.health_check.kind.as_ref().map_or(&origin, |item| &item.origin).clone();
    let route = route_table::build_route(route, diagnostics);
    let alpn = diagnostics.parse_all("terminate.alpn", alpn, |text| parse_alpn_protocol(&text));
    let route = route?;
    if route.health_check.kind == Some(HealthCheckKind::Tls) {
        let text = "these back ends speak no TLS; one of off, tcp";
        diagnostics.0.push(Diagnostic::at(&check_origin, "terminate.health_check.type", text));
    }
    if route.names.contains(&Pattern::Default) {
        let text = "no certificate is for \"*\"; name the names";
        diagnostics.0.push(Diagnostic::at(&origin, "terminate.sni", text));
    }
    let certificate = match (&cert, &key) {
        (None, None) => Some(acme_certificate(challenge, &route, capabilities, diagnostics)),
        (_, _) => file_certificate((cert, key), challenge, &route, diagnostics),
    };
    Some(Terminate { route, certificate: certificate?, alpn: alpn? })
}

fn acme_certificate(
    requested: Option<Located<String>>,
    route: &Route,
    capabilities: AcmeCapabilities,
    diagnostics: &mut Diagnostics,
) -> CertificateSource {
    let origin = requested.as_ref().map_or(&route.origin, |item| &item.origin).clone();
    let challenge = diagnostics
        .parse_optional("terminate.challenge", requested, |text| self::parse_challenge(&text));
    let challenge = challenge.unwrap_or(Challenge::TlsAlpn01);
    let missing = missing_requirements(challenge, capabilities, &route.names);
    let problem = |text| Diagnostic::at(&origin, "terminate.challenge", text);
    diagnostics.0.extend(missing.into_iter().map(problem));
    CertificateSource::Acme(challenge)
}

fn file_certificate(
    files: (Option<Located<String>>, Option<Located<String>>),
    challenge: Option<Located<String>>,
    route: &Route,
    diagnostics: &mut Diagnostics,
) -> Option<CertificateSource> {
    let mut report =
        |text: &str| diagnostics.0.push(Diagnostic::at(&route.origin, "terminate.cert", text));
    if challenge.is_some() {
        report("a certificate from files needs no challenge; remove one of the two");
    }
    let (cert, key) = match files {
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            report("the certificate's key is missing; add key = \"FILE\"");
            return None;
        }
        (None, _) => {
            report("the key's certificate is missing; add cert = \"FILE\"");
            return None;
        }
    };
    let cert = diagnostics.parse("terminate.cert", cert, |text| parse::readable_file(&text))?;
    let key = diagnostics.parse("terminate.key", key, |text| parse::readable_file(&text))?;
    if let Err(text) = pem::verify_names(&cert, &key, &route.names) {
        diagnostics.0.push(Diagnostic::at(&route.origin, "terminate.cert", text));
    }
    Some(CertificateSource::Files { cert, key })
}

/// What a challenge needs and has not.
fn missing_requirements(
    challenge: Challenge,
    capabilities: AcmeCapabilities,
    names: &[Pattern],
) -> Vec<String> {
    let is_wild = |pattern: &&Pattern| matches!(pattern, Pattern::Wildcard(_));
    let wild = names.iter().find(is_wild).filter(|_| challenge != Challenge::Dns01);
    let wild = wild.map(|name| {
        format!("\"{name}\" can only be proved by \"dns-01\" (RFC 8555 §7.1.3), not by this")
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

fn parse_challenge(text: &str) -> Result<Challenge, String> {
    let all = [Challenge::TlsAlpn01, Challenge::Http01, Challenge::Dns01];
    all.into_iter()
        .find(|challenge| challenge.label() == text)
        .ok_or_else(|| format!("\"{text}\" is unknown; one of tls-alpn-01, http-01, dns-01"))
}

/// A protocol for ALPN, RFC 7301.
fn parse_alpn_protocol(text: &str) -> Result<Vec<u8>, String> {
    match text {
        "acme-tls/1" => {
            Err("acme-tls/1 is answered by itself, and only while an order runs".into())
        }
        _ if (1..=255).contains(&text.len()) => Ok(text.as_bytes().to_vec()),
        _ => Err(format!("\"{text}\" is no protocol; write one like \"h2\" or \"http/1.1\"")),
    }
}
