//! `[acme]`: from text with places to what ordering certificates needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};

use super::diagnostic::Diagnostic;
use super::validate::{Diagnostics, Located};
use super::{Origin, parse};

/// Where state is kept unless `state_dir` says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/snisplit";
/// How long a record may take to be on all name servers unless `propagation_timeout` says otherwise.
pub const DEFAULT_PROPAGATION_TIMEOUT: Duration = Duration::from_secs(120);

/// How certificates are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeConfig {
    /// `directory`: the CA's entry point. Naming it agrees to its terms of service.
    pub directory: String,
    /// `contact`
    pub contact: Vec<String>,
    /// `ca_file`: the root that the CA's own HTTPS is verified by, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `state_dir`
    pub state_dir: PathBuf,
    /// `profile`
    pub profile: Option<String>,
    /// `eab_kid` and `eab_hmac`: external account binding, RFC 8555 §7.3.4.
    pub eab: Option<(String, Vec<u8>)>,
    /// `[acme.dns]`
    pub dns: Option<Dns01Config>,
}

/// How DNS-01 records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns01Config {
    /// By what.
    pub provider: DnsProvider,
    /// `propagation_timeout`
    pub propagation_timeout: Duration,
}

/// What writes DNS records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsProvider {
    /// A dynamic update (RFC 2136), signed by TSIG (RFC 8945) if there is a key.
    Rfc2136 {
        /// `server`: the primary.
        server: SocketAddr,
        /// `zone`: found by asking for its SOA record unless it is named.
        zone: Option<String>,
        /// The key.
        tsig: Option<TsigKey>,
    },
    /// A program that is called with `present` or `cleanup`, the name and the value, as lego does.
    Exec(PathBuf),
}

/// A TSIG key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TsigKey {
    /// `tsig_name`
    pub name: String,
    /// `tsig_secret`, decoded.
    pub secret: Vec<u8>,
    /// `tsig_algorithm`
    pub algorithm: HmacAlgorithm,
}

/// Algorithms of TSIG that are worth having.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HmacAlgorithm {
    /// `hmac-sha256`
    #[default]
    HmacSha256,
    /// `hmac-sha384`
    HmacSha384,
    /// `hmac-sha512`
    HmacSha512,
}

/// `[acme]` that is not understood yet.
#[derive(Debug, Default)]
pub(super) struct DraftAcme {
    /// Of the section; flags may make up one without.
    pub(super) origin: Option<Origin>,
    pub(super) directory: Option<Located<String>>,
    pub(super) contact: Vec<Located<String>>,
    pub(super) ca_file: Option<Located<String>>,
    pub(super) state_dir: Option<Located<String>>,
    pub(super) profile: Option<Located<String>>,
    pub(super) eab_kid: Option<Located<String>>,
    pub(super) eab_hmac: Option<Located<String>>,
    pub(super) dns: Option<DraftDns>,
}

/// `[acme.dns]` likewise.
#[derive(Debug)]
pub(super) struct DraftDns {
    pub(super) provider: Located<String>,
    pub(super) server: Option<Located<String>>,
    pub(super) zone: Option<Located<String>>,
    pub(super) tsig_name: Option<Located<String>>,
    pub(super) tsig_secret: Option<Located<String>>,
    pub(super) tsig_algorithm: Option<Located<String>>,
    pub(super) program: Option<Located<String>>,
    pub(super) propagation_timeout: Option<Located<String>>,
}

pub(super) fn build(draft: DraftAcme, diagnostics: &mut Diagnostics) -> Option<AcmeConfig> {
    let origin = draft.origin.clone();
    let directory = diagnostics
        .parse_optional("acme.directory", draft.directory, |text| parse::https_url(&text));
    if directory.is_none() && diagnostics.0.iter().all(|problem| problem.key != "acme.directory") {
        let text = "name the CA's directory, such as \
                    \"https://acme-v02.api.letsencrypt.org/directory\"; that agrees to its terms \
                    of service";
        diagnostics.0.push(match &origin {
            Some(origin) => Diagnostic::at(origin, "acme.directory", text),
            None => Diagnostic::without_origin("acme.directory", text),
        });
    }
    let contact =
        diagnostics.parse_all("acme.contact", draft.contact, |text| parse::contact_url(&text));
    let ca_file = diagnostics
        .parse_optional("acme.ca_file", draft.ca_file, |text| parse::readable_file(&text));
    let state_dir = diagnostics
        .parse_optional("acme.state_dir", draft.state_dir, |text| parse::absolute_path(&text));
    let eab = parse_eab(draft.eab_kid, draft.eab_hmac, diagnostics);
    Some(AcmeConfig {
        directory: directory?,
        contact: contact?,
        ca_file,
        state_dir: state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        profile: draft.profile.map(|item| item.value),
        eab,
        dns: draft.dns.and_then(|dns| self::dns(dns, diagnostics)),
    })
}

fn parse_eab(
    kid: Option<Located<String>>,
    hmac: Option<Located<String>>,
    diagnostics: &mut Diagnostics,
) -> Option<(String, Vec<u8>)> {
    match (kid, hmac) {
        (None, None) => None,
        (Some(kid), Some(hmac)) => {
            let hmac = diagnostics.parse("acme.eab_hmac", hmac, |text| {
                let text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
                BASE64URL_NOPAD
                    .decode(text.as_bytes())
                    .map_err(|_| String::from("is not base64; copy it as the CA shows it"))
            });
            Some((kid.value, hmac?))
        }
        (Some(lone), None) | (None, Some(lone)) => {
            let text = "eab_kid and eab_hmac go together; add the other one";
            diagnostics.0.push(Diagnostic::at(&lone.origin, "acme.eab_kid", text));
            None
        }
    }
}

fn dns(draft: DraftDns, diagnostics: &mut Diagnostics) -> Option<Dns01Config> {
    let propagation_timeout = draft.propagation_timeout;
    let propagation_timeout =
        diagnostics.parse_optional("acme.dns.propagation_timeout", propagation_timeout, |text| {
            parse::duration(&text)
        });
    let origin = draft.provider.origin.clone();
    let mut report_missing = |key: &str, text: &str| {
        diagnostics.0.push(Diagnostic::at(&origin, &format!("acme.dns.{key}"), text));
    };
    let provider = match draft.provider.value.as_str() {
        "rfc2136" if draft.server.is_none() => {
            report_missing(
                "server",
                "rfc2136 needs the primary name server, such as \"10.0.0.53\"",
            );
            None
        }
        "rfc2136" => {
            let server = diagnostics
                .parse_optional("acme.dns.server", draft.server, |text| parse::nameserver(&text));
            let key_parts = (draft.tsig_name, draft.tsig_secret);
            let tsig = tsig(key_parts, draft.tsig_algorithm, diagnostics);
            let zone = draft.zone.map(|zone| zone.value);
            server.map(|server| DnsProvider::Rfc2136 { server, zone, tsig })
        }
        "exec" if draft.program.is_none() => {
            report_missing(
                "program",
                "exec needs a program, such as \"/usr/local/bin/update-dns\"",
            );
            None
        }
        "exec" => diagnostics
            .parse_optional("acme.dns.program", draft.program, |text| parse::readable_file(&text))
            .map(DnsProvider::Exec),
        other => {
            let text = format!("\"{other}\" is unknown; one of rfc2136, exec");
            report_missing("provider", &text);
            None
        }
    };
    Some(Dns01Config {
        provider: provider?,
        propagation_timeout: propagation_timeout.unwrap_or(DEFAULT_PROPAGATION_TIMEOUT),
    })
}

fn tsig(
    key_parts: (Option<Located<String>>, Option<Located<String>>),
    algorithm: Option<Located<String>>,
    diagnostics: &mut Diagnostics,
) -> Option<TsigKey> {
    let algorithm = diagnostics.parse_optional("acme.dns.tsig_algorithm", algorithm, |text| {
        match text.as_str() {
            "hmac-sha256" => Ok(HmacAlgorithm::HmacSha256),
            "hmac-sha384" => Ok(HmacAlgorithm::HmacSha384),
            "hmac-sha512" => Ok(HmacAlgorithm::HmacSha512),
            _ => {
                Err(format!("\"{text}\" is unknown; one of hmac-sha256, hmac-sha384, hmac-sha512"))
            }
        }
    });
    match key_parts {
        (None, None) => None,
        (Some(name), Some(secret)) => {
            let secret = diagnostics.parse("acme.dns.tsig_secret", secret, |text| {
                let secret = BASE64.decode(text.as_bytes());
                secret.map_err(|_| String::from("is not base64; copy it as tsig-keygen shows it"))
            });
            let algorithm = algorithm.unwrap_or_default();
            Some(TsigKey { name: name.value, secret: secret?, algorithm })
        }
        (Some(lone), None) | (None, Some(lone)) => {
            let text = "tsig_name and tsig_secret go together; add the other one";
            diagnostics.0.push(Diagnostic::at(&lone.origin, "acme.dns.tsig_name", text));
            None
        }
    }
}
