//! `[acme]`: how certificates are ordered.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::choices::{DnsProviderKind, HmacAlgorithm};
use super::diagnostic::Diagnostics;
use super::located::{Located, Position, Setting};
use super::value::TsigSecret;
use super::{defaults, schema};

/// How certificates are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeConfig {
    /// The CA's directory. Naming it agrees to the CA's terms of service.
    pub directory: String,
    /// Contacts of the account, as URLs.
    pub contact: Vec<String>,
    /// Root certificates that verify the CA's HTTPS, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Where the account, orders and certificates are stored.
    pub state_dir: PathBuf,
    /// Certificate profile to ask for.
    pub profile: Option<String>,
    /// External account binding (RFC 8555 §7.3.4): key identifier and HMAC key.
    pub eab: Option<(String, Vec<u8>)>,
    /// How DNS-01 records are written.
    pub dns: Option<Dns01Config>,
}

/// How DNS-01 records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns01Config {
    /// What writes them.
    pub provider: DnsProvider,
    /// Time within which all name servers must have a record.
    pub propagation_timeout: Duration,
}

/// What writes DNS records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsProvider {
    /// A dynamic update (RFC 2136), signed by TSIG (RFC 8945) if there is a key.
    Rfc2136 {
        /// The primary name server.
        server: SocketAddr,
        /// The zone to update; `None` to find it by its SOA record.
        zone: Option<String>,
        /// The key that signs updates.
        tsig: Option<TsigKey>,
    },
    /// A program that is called with `present` or `cleanup`, the name and the value.
    Exec(PathBuf),
}

/// A TSIG key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TsigKey {
    /// Its name, which the name server knows it by.
    pub name: String,
    /// The secret, decoded.
    pub secret: Vec<u8>,
    /// Its algorithm.
    pub algorithm: HmacAlgorithm,
}

/// `None` if a problem was reported that leaves nothing to order by.
pub(super) fn build(
    acme: Located<schema::Acme>,
    diagnostics: &mut Diagnostics,
) -> Option<AcmeConfig> {
    let Located { position, value: table } = acme;
    if table.directory.is_none() {
        let message = "name the CA's directory, such as \
                       \"https://acme-v02.api.letsencrypt.org/directory\"; that agrees to its \
                       terms of service";
        diagnostics.report(&position, "acme.directory", message);
    }
    let directory = diagnostics.value("acme.directory", table.directory);
    let contact = diagnostics.values("acme.contact", table.contact);
    let ca_file = diagnostics.value("acme.ca_file", table.ca_file);
    let state_dir = diagnostics.value("acme.state_dir", table.state_dir);
    let profile = diagnostics.value("acme.profile", table.profile);
    if let Some(lone) = lone_of_pair(table.eab_kid.as_ref(), table.eab_hmac.as_ref()) {
        let message = "eab_kid and eab_hmac go together; add the other one";
        diagnostics.report(lone, "acme.eab_kid", message);
    }
    let eab_kid = diagnostics.value("acme.eab_kid", table.eab_kid);
    let eab_hmac = diagnostics.value("acme.eab_hmac", table.eab_hmac);
    let dns = table.dns.and_then(|dns| build_dns(dns, diagnostics));
    Some(AcmeConfig {
        directory: directory?.0,
        contact: contact?.into_iter().map(|url| url.0).collect(),
        ca_file: ca_file.map(|file| file.0),
        state_dir: state_dir.map_or_else(|| defaults::STATE_DIR.into(), |path| path.0),
        profile,
        eab: eab_kid.zip(eab_hmac.map(|hmac| hmac.0)),
        dns,
    })
}

/// The position of the one that is given, if the other is not.
fn lone_of_pair<'s, T, U>(
    first: Option<&'s Setting<T>>,
    second: Option<&'s Setting<U>>,
) -> Option<&'s Position> {
    match (first, second) {
        (Some(lone), None) => Some(&lone.position),
        (None, Some(lone)) => Some(&lone.position),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

fn build_dns(dns: Located<schema::Dns>, diagnostics: &mut Diagnostics) -> Option<Dns01Config> {
    let Located { position, value: table } = dns;
    let propagation_timeout =
        diagnostics.value("acme.dns.propagation_timeout", table.propagation_timeout);
    if table.provider.is_none() {
        let message = "is missing; add provider = \"rfc2136\" or \"exec\"";
        diagnostics.report(&position, "acme.dns.provider", message);
    }
    let position = table.provider.as_ref().map_or(position, |item| item.position.clone());
    let server = diagnostics.value("acme.dns.server", table.server.clone());
    let zone = diagnostics.value("acme.dns.zone", table.zone);
    let program = diagnostics.value("acme.dns.program", table.program.clone());
    let tsig = TsigSettings {
        name: table.tsig_name,
        secret: table.tsig_secret,
        algorithm: table.tsig_algorithm,
    };
    let tsig = tsig.build(diagnostics);
    let mut require = |is_given: bool, key: &str, message: &str| {
        if !is_given {
            diagnostics.report(&position, &format!("acme.dns.{key}"), message);
        }
    };
    let provider = match table.provider?.value.0 {
        Ok(DnsProviderKind::Rfc2136) => {
            let message = "rfc2136 needs the primary name server, such as \"10.0.0.53\"";
            require(table.server.is_some(), "server", message);
            DnsProvider::Rfc2136 { server: server?.0, zone, tsig }
        }
        Ok(DnsProviderKind::Exec) => {
            let message = "exec needs a program, such as \"/usr/local/bin/update-dns\"";
            require(table.program.is_some(), "program", message);
            DnsProvider::Exec(program?.0)
        }
        Err(message) => {
            diagnostics.report(&position, "acme.dns.provider", message);
            return None;
        }
    };
    Some(Dns01Config {
        provider,
        propagation_timeout: propagation_timeout.unwrap_or(defaults::PROPAGATION_TIMEOUT),
    })
}

struct TsigSettings {
    name: Option<Setting<String>>,
    secret: Option<Setting<TsigSecret>>,
    algorithm: Option<Setting<HmacAlgorithm>>,
}

impl TsigSettings {
    fn build(self, diagnostics: &mut Diagnostics) -> Option<TsigKey> {
        if let Some(lone) = lone_of_pair(self.name.as_ref(), self.secret.as_ref()) {
            let message = "tsig_name and tsig_secret go together; add the other one";
            diagnostics.report(lone, "acme.dns.tsig_name", message);
        }
        let name = diagnostics.value("acme.dns.tsig_name", self.name);
        let secret = diagnostics.value("acme.dns.tsig_secret", self.secret);
        let algorithm = diagnostics.value("acme.dns.tsig_algorithm", self.algorithm);
        Some(TsigKey { name: name?, secret: secret?.0, algorithm: algorithm.unwrap_or_default() })
    }
}
