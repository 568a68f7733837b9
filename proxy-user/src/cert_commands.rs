//! `snisplit certs`: what certificates there are, read from where the agent keeps them, whether it
//! runs or not.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

use crate::acme::status::{CertificateStatus, format_time, from_unix_seconds};
use crate::acme::store::{self, CertificateDir};
use crate::certs::info::CertInfo;
use crate::certs::pem;
use crate::config::terminate::CertificateSource;
use crate::config::{Config, Terminate};

/// Lists all certificates of a configuration, a paragraph each.
///
/// # Errors
///
/// The state directory cannot be read.
pub fn list(config: &Config) -> Result<String> {
    let paragraphs: Result<Vec<String>> =
        config.terminates.iter().map(|one| describe(config, one)).collect();
    match paragraphs?.as_slice() {
        [] => Ok("no [[terminate]]: this agent needs no certificate\n".into()),
        paragraphs => Ok(paragraphs.join("\n")),
    }
}

/// Asks the running agent, or the next one, to renew the certificate of a name.
///
/// # Errors
///
/// No `[[terminate]]` entry has the name, its certificate comes from files, or the request cannot be written.
pub fn renew(config: &Config, name: &str) -> Result<()> {
    let has_name =
        |one: &&Arc<Terminate>| one.route.names.iter().any(|own| own.to_string() == name);
    let Some(terminate) = config.terminates.iter().find(has_name) else {
        bail!("no [[terminate]] has \"{name}\"");
    };
    let Some(folder) = certificate_dir(config, terminate) else {
        bail!("the certificate of \"{name}\" comes from files; replace these");
    };
    folder.request_renewal().with_context(|| {
        format!("acme.state_dir: no agent has begun to keep \"{}\" there", terminate.route.label)
    })?;
    println!("asked for; a running agent orders within a second or two");
    Ok(())
}

fn certificate_dir(config: &Config, terminate: &Terminate) -> Option<CertificateDir> {
    let acme = config.acme.as_ref()?;
    match terminate.certificate {
        CertificateSource::Acme(_) => {
            Some(store::open_readonly(&acme.state_dir, &acme.directory, &terminate.route.label))
        }
        CertificateSource::Files { .. } => None,
    }
}

fn describe(config: &Config, terminate: &Terminate) -> Result<String> {
    let names: Vec<String> = terminate.route.names.iter().map(ToString::to_string).collect();
    let mut out = format!("{}\n", names.join(" "));
    let mut line = |what: &str, words: &str| {
        let _infallible = writeln!(out, "  {what:<12} {words}");
    };
    let (origin, facts, status) = match &terminate.certificate {
        CertificateSource::Files { cert, key } => {
            let found = pem::load(cert, key).map(|(_, facts)| facts);
            (cert.display().to_string(), Some(found), None)
        }
        CertificateSource::Acme(challenge) => {
            let folder = certificate_dir(config, terminate).context("[acme] is missing")?;
            let stored = folder.read()?;
            (challenge.label().to_owned(), stored.info, stored.status)
        }
    };
    line("by", &origin);
    match facts {
        Some(Ok(CertInfo { issuer, not_after, .. })) => {
            line("issuer", &issuer);
            line("not after", &format_time(not_after));
        }
        Some(Err(why)) => line("broken", &why),
        None => line("not after", "there is none yet"),
    }
    if let Some(CertificateStatus { next, last_error, .. }) = status {
        let next_order = from_unix_seconds(next);
        let words =
            if next_order <= SystemTime::now() { "now".into() } else { format_time(next_order) };
        line("next order", &words);
        line("last error", last_error.as_deref().unwrap_or("none"));
    }
    Ok(out)
}
