//! `[acme]`: from text with places to what ordering certificates needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};

use super::build::{Item, Wrong};
use super::problem::Problem;
use super::{Origin, value};

/// Where state is kept unless `state_dir` says otherwise.
pub const STATE_DIR: &str = "/var/lib/snisplit";
/// How long a record may take to be on all name servers unless `propagation_timeout` says otherwise.
pub const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(120);

/// How certificates are ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
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
    pub dns: Option<Dns>,
}

/// How DNS-01 records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// By what.
    pub provider: Provider,
    /// `propagation_timeout`
    pub propagation_timeout: Duration,
}

/// What writes DNS records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// A dynamic update (RFC 2136), signed by TSIG (RFC 8945) if there is a key.
    Rfc2136 {
        /// `server`: the primary.
        server: SocketAddr,
        /// `zone`: found by asking for its SOA record unless it is named.
        zone: Option<String>,
        /// The key.
        tsig: Option<Tsig>,
    },
    /// A program that is called with `present` or `cleanup`, the name and the value, as lego does.
    Exec(PathBuf),
}

/// A TSIG key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tsig {
    /// `tsig_name`
    pub name: String,
    /// `tsig_secret`, decoded.
    pub secret: Vec<u8>,
    /// `tsig_algorithm`
    pub algorithm: Algorithm,
}

/// Algorithms of TSIG that are worth having.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
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
    pub(super) directory: Option<Item<String>>,
    pub(super) contact: Vec<Item<String>>,
    pub(super) ca_file: Option<Item<String>>,
    pub(super) state_dir: Option<Item<String>>,
    pub(super) profile: Option<Item<String>>,
    pub(super) eab_kid: Option<Item<String>>,
    pub(super) eab_hmac: Option<Item<String>>,
    pub(super) dns: Option<DraftDns>,
}

/// `[acme.dns]` likewise.
#[derive(Debug)]
pub(super) struct DraftDns {
    pub(super) provider: Item<String>,
    pub(super) server: Option<Item<String>>,
    pub(super) zone: Option<Item<String>>,
    pub(super) tsig_name: Option<Item<String>>,
    pub(super) tsig_secret: Option<Item<String>>,
    pub(super) tsig_algorithm: Option<Item<String>>,
    pub(super) program: Option<Item<String>>,
    pub(super) propagation_timeout: Option<Item<String>>,
}

pub(super) fn build(draft: DraftAcme, wrong: &mut Wrong) -> Option<Acme> {
    let origin = draft.origin.clone();
    let directory = wrong.opt("acme.directory", draft.directory, |text| value::https(&text));
    if directory.is_none() && wrong.0.iter().all(|problem| problem.key != "acme.directory") {
        let text = "name the CA's directory, such as \
                    \"https://acme-v02.api.letsencrypt.org/directory\"; that agrees to its terms \
                    of service";
        wrong.0.push(match &origin {
            Some(origin) => Problem::new(origin, "acme.directory", text),
            None => Problem::overall("acme.directory", text),
        });
    }
    let contact = wrong.all("acme.contact", draft.contact, |text| value::contact(&text));
    let ca_file = wrong.opt("acme.ca_file", draft.ca_file, |text| value::readable(&text));
    let state_dir = wrong.opt("acme.state_dir", draft.state_dir, |text| value::absolute(&text));
    let eab = eab(draft.eab_kid, draft.eab_hmac, wrong);
    Some(Acme {
        directory: directory?,
        contact: contact?,
        ca_file,
        state_dir: state_dir.unwrap_or_else(|| STATE_DIR.into()),
        profile: draft.profile.map(|item| item.value),
        eab,
        dns: draft.dns.and_then(|dns| self::dns(dns, wrong)),
    })
}

fn eab(
    kid: Option<Item<String>>,
    hmac: Option<Item<String>>,
    wrong: &mut Wrong,
) -> Option<(String, Vec<u8>)> {
    match (kid, hmac) {
        (None, None) => None,
        (Some(kid), Some(hmac)) => {
            let hmac = wrong.one("acme.eab_hmac", hmac, |text| {
                let text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
                BASE64URL_NOPAD
                    .decode(text.as_bytes())
                    .map_err(|_| String::from("is not base64; copy it as the CA shows it"))
            });
            Some((kid.value, hmac?))
        }
        (Some(one), None) | (None, Some(one)) => {
            let text = "eab_kid and eab_hmac go together; add the other one";
            wrong.0.push(Problem::new(&one.origin, "acme.eab_kid", text));
            None
        }
    }
}

fn dns(draft: DraftDns, wrong: &mut Wrong) -> Option<Dns> {
    let limit = draft.propagation_timeout;
    let limit = wrong.opt("acme.dns.propagation_timeout", limit, |text| value::duration(&text));
    let origin = draft.provider.origin.clone();
    let mut lacks = |key: &str, text: &str| {
        wrong.0.push(Problem::new(&origin, &format!("acme.dns.{key}"), text));
    };
    let provider = match draft.provider.value.as_str() {
        "rfc2136" if draft.server.is_none() => {
            lacks("server", "rfc2136 needs the primary name server, such as \"10.0.0.53\"");
            None
        }
        "rfc2136" => {
            let server =
                wrong.opt("acme.dns.server", draft.server, |text| value::nameserver(&text));
            let named = (draft.tsig_name, draft.tsig_secret);
            let tsig = tsig(named, draft.tsig_algorithm, wrong);
            let zone = draft.zone.map(|zone| zone.value);
            server.map(|server| Provider::Rfc2136 { server, zone, tsig })
        }
        "exec" if draft.program.is_none() => {
            lacks("program", "exec needs a program, such as \"/usr/local/bin/update-dns\"");
            None
        }
        "exec" => wrong
            .opt("acme.dns.program", draft.program, |text| value::readable(&text))
            .map(Provider::Exec),
        other => {
            let text = format!("\"{other}\" is unknown; one of rfc2136, exec");
            lacks("provider", &text);
            None
        }
    };
    Some(Dns { provider: provider?, propagation_timeout: limit.unwrap_or(PROPAGATION_TIMEOUT) })
}

fn tsig(
    named: (Option<Item<String>>, Option<Item<String>>),
    algorithm: Option<Item<String>>,
    wrong: &mut Wrong,
) -> Option<Tsig> {
    let algorithm = wrong.opt("acme.dns.tsig_algorithm", algorithm, |text| match text.as_str() {
        "hmac-sha256" => Ok(Algorithm::HmacSha256),
        "hmac-sha384" => Ok(Algorithm::HmacSha384),
        "hmac-sha512" => Ok(Algorithm::HmacSha512),
        _ => Err(format!("\"{text}\" is unknown; one of hmac-sha256, hmac-sha384, hmac-sha512")),
    });
    match named {
        (None, None) => None,
        (Some(name), Some(secret)) => {
            let secret = wrong.one("acme.dns.tsig_secret", secret, |text| {
                let secret = BASE64.decode(text.as_bytes());
                secret.map_err(|_| String::from("is not base64; copy it as tsig-keygen shows it"))
            });
            let algorithm = algorithm.unwrap_or_default();
            Some(Tsig { name: name.value, secret: secret?, algorithm })
        }
        (Some(one), None) | (None, Some(one)) => {
            let text = "tsig_name and tsig_secret go together; add the other one";
            wrong.0.push(Problem::new(&one.origin, "acme.dns.tsig_name", text));
            None
        }
    }
}
