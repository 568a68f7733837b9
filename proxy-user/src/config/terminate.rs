//! `[[terminate]]`: names whose TLS ends here.

use std::path::PathBuf;

use snisplit_common::server_name::Pattern;

use super::build::{Draft, Item, Wrong};
use super::problem::Problem;
use super::routes::{self, DraftRoute};
use super::{Check, Route, value};
use crate::certs::files;

/// Names that this agent holds a certificate for, and the plaintext back ends behind them.
#[derive(Debug)]
pub struct Terminate {
    /// Names, back ends and how they are dialled.
    pub route: Route,
    /// Where the certificate comes from.
    pub certificate: Certificate,
    /// `alpn`: protocols to agree to, in order of preference.
    pub alpn: Vec<Vec<u8>>,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// `challenge`: it is ordered.
    Ordered(Challenge),
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
    pub const fn name(self) -> &'static str {
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
    pub(super) challenge: Option<Item<String>>,
    pub(super) cert: Option<Item<String>>,
    pub(super) key: Option<Item<String>>,
    pub(super) alpn: Vec<Item<String>>,
}

/// What the rest of the configuration has for ordering certificates, right or wrong.
#[derive(Clone, Copy)]
pub(super) struct Means {
    pub(super) acme: bool,
    pub(super) dns: bool,
    pub(super) http: bool,
}

impl Means {
    pub(super) fn of(draft: &Draft) -> Self {
        let acme = draft.acme.as_ref();
        Self {
            acme: acme.is_some(),
            dns: acme.is_some_and(|acme| acme.dns.is_some()),
            http: draft.http.is_some(),
        }
    }
}

pub(super) fn build(draft: DraftTerminate, means: Means, wrong: &mut Wrong) -> Option<Terminate> {
    let DraftTerminate { route, challenge, cert, key, alpn } = draft;
    let origin = route.origin.clone();
    let check_at = route.check.as_ref().map_or(&origin, |item| &item.origin).clone();
    let route = routes::route(route, wrong);
    let alpn = wrong.all("terminate.alpn", alpn, |text| protocol(&text));
    let route = route?;
    if route.check == Some(Check::Tls) {
        let text = "these back ends speak no TLS; one of off, tcp";
        wrong.0.push(Problem::new(&check_at, "terminate.check", text));
    }
    if route.names.contains(&Pattern::Default) {
        let text = "no certificate is for \"*\"; name the names";
        wrong.0.push(Problem::new(&origin, "terminate.sni", text));
    }
    let certificate = match (&cert, &key) {
        (None, None) => Some(ordered(challenge, &route, means, wrong)),
        (_, _) => from_files((cert, key), challenge, &route, wrong),
    };
    Some(Terminate { route, certificate: certificate?, alpn: alpn? })
}

fn ordered(
    asked: Option<Item<String>>,
    route: &Route,
    means: Means,
    wrong: &mut Wrong,
) -> Certificate {
    let place = asked.as_ref().map_or(&route.origin, |item| &item.origin).clone();
    let challenge = wrong.opt("terminate.challenge", asked, |text| self::challenge(&text));
    let challenge = challenge.unwrap_or(Challenge::TlsAlpn01);
    let lacks = lacks(challenge, means, &route.names);
    let problem = |text| Problem::new(&place, "terminate.challenge", text);
    wrong.0.extend(lacks.into_iter().map(problem));
    Certificate::Ordered(challenge)
}

fn from_files(
    files: (Option<Item<String>>, Option<Item<String>>),
    challenge: Option<Item<String>>,
    route: &Route,
    wrong: &mut Wrong,
) -> Option<Certificate> {
    let mut say = |text: &str| wrong.0.push(Problem::new(&route.origin, "terminate.cert", text));
    if challenge.is_some() {
        say("a certificate from files needs no challenge; remove one of the two");
    }
    let (cert, key) = match files {
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            say("the certificate's key is missing; add key = \"FILE\"");
            return None;
        }
        (None, _) => {
            say("the key's certificate is missing; add cert = \"FILE\"");
            return None;
        }
    };
    let cert = wrong.one("terminate.cert", cert, |text| value::readable(&text))?;
    let key = wrong.one("terminate.key", key, |text| value::readable(&text))?;
    if let Err(text) = files::covers(&cert, &key, &route.names) {
        wrong.0.push(Problem::new(&route.origin, "terminate.cert", text));
    }
    Some(Certificate::Files { cert, key })
}

/// What a challenge needs and has not.
fn lacks(challenge: Challenge, means: Means, names: &[Pattern]) -> Vec<String> {
    let is_wild = |pattern: &&Pattern| matches!(pattern, Pattern::Wildcard(_));
    let wild = names.iter().find(is_wild).filter(|_| challenge != Challenge::Dns01);
    let wild = wild.map(|name| {
        format!("\"{name}\" can only be proved by \"dns-01\" (RFC 8555 §7.1.3), not by this")
    });
    let acme = (!means.acme).then(|| {
        String::from("ordering certificates needs [acme] with a directory, or set cert and key")
    });
    let http = (challenge == Challenge::Http01 && !means.http)
        .then(|| String::from("http-01 needs [http] with address = \"[::]:80\""));
    let dns = (challenge == Challenge::Dns01 && means.acme && !means.dns)
        .then(|| String::from("dns-01 needs [acme.dns] with a provider"));
    [wild, acme, http, dns].into_iter().flatten().collect()
}

fn challenge(text: &str) -> Result<Challenge, String> {
    let all = [Challenge::TlsAlpn01, Challenge::Http01, Challenge::Dns01];
    all.into_iter()
        .find(|challenge| challenge.name() == text)
        .ok_or_else(|| format!("\"{text}\" is unknown; one of tls-alpn-01, http-01, dns-01"))
}

/// A protocol for ALPN, RFC 7301.
fn protocol(text: &str) -> Result<Vec<u8>, String> {
    match text {
        "acme-tls/1" => {
            Err("acme-tls/1 is answered by itself, and only while an order runs".into())
        }
        _ if (1..=255).contains(&text.len()) => Ok(text.as_bytes().to_vec()),
        _ => Err(format!("\"{text}\" is no protocol; write one like \"h2\" or \"http/1.1\"")),
    }
}
