//! `snisplit certs`: shows the certificates of a configuration, and requests renewals.
//!
//! The subcommand reads the state directory and the certificate files, whether an agent runs or not.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::acme::status::{format_time, from_unix_seconds};
use crate::acme::store::{self, CertificateDir};
use crate::certs::pem;
use crate::config::terminate::CertificateSource;
use crate::config::{Config, Terminate};

/// Certificates of all `[[terminate]]` entries.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct CertificateList(Vec<CertificateRow>);

/// Certificate of a `[[terminate]]` entry. Times are seconds since 1970.
#[derive(Debug, Serialize)]
struct CertificateRow {
    names: Vec<String>,
    /// Challenge that it is ordered by, or its file.
    source: String,
    issuer: Option<String>,
    not_after: Option<u64>,
    /// Why the certificate cannot be used.
    broken: Option<String>,
    /// `None` if the certificate comes from a file, or before an agent has run.
    next_order: Option<u64>,
    last_error: Option<String>,
}

impl CertificateList {
    /// Reads the certificates of a configuration.
    ///
    /// # Errors
    ///
    /// The state directory cannot be read.
    pub fn read(config: &Config) -> Result<Self> {
        let rows =
            config.terminates.iter().map(|terminate| CertificateRow::read(config, terminate));
        Ok(Self(rows.collect::<Result<_>>()?))
    }
}

impl CertificateRow {
    fn read(config: &Config, terminate: &Terminate) -> Result<Self> {
        let (source, info, status) = match &terminate.certificate {
            CertificateSource::Files { cert, key } => {
                let info = pem::load(cert, key).map(|(_, info)| info);
                let info = info.map_err(|error| error.to_string());
                (cert.display().to_string(), Some(info), None)
            }
            CertificateSource::Acme(challenge) => {
                let dir = certificate_dir(config, terminate).context("[acme] is missing")?;
                let stored = dir.read()?;
                let info = stored.info.map(|info| info.map_err(|error| error.to_string()));
                (challenge.label().to_owned(), info, stored.status)
            }
        };
        let (info, broken) = match info {
            Some(Ok(info)) => (Some(info), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let not_after = info.as_ref().map(|info| info.not_after.duration_since(UNIX_EPOCH));
        Ok(Self {
            names: terminate.route.names.iter().map(ToString::to_string).collect(),
            source,
            not_after: not_after.map(|time| time.unwrap_or_default().as_secs()),
            issuer: info.map(|info| info.issuer),
            broken,
            next_order: status.as_ref().map(|status| status.next),
            last_error: status.and_then(|status| status.last_error),
        })
    }
}

/// Asks the running agent, or the next one, to renew the certificate of a name.
///
/// # Errors
///
/// No `[[terminate]]` entry has the name, its certificate comes from files, or the request cannot be
/// written.
pub fn request_renewal(config: &Config, name: &str) -> Result<RenewalRequest> {
    let has_name = |terminate: &&Arc<Terminate>| {
        terminate.route.names.iter().any(|own| own.to_string() == name)
    };
    let Some(terminate) = config.terminates.iter().find(has_name) else {
        bail!("no [[terminate]] has \"{name}\"");
    };
    let Some(dir) = certificate_dir(config, terminate) else {
        bail!("the certificate of \"{name}\" comes from files; replace these");
    };
    dir.request_renewal().with_context(|| {
        format!("acme.state_dir: no agent has ordered \"{}\" there yet", terminate.route.label)
    })?;
    Ok(RenewalRequest { names: terminate.route.names.iter().map(ToString::to_string).collect() })
}

/// The certificate whose renewal was requested.
#[derive(Debug, Serialize)]
pub struct RenewalRequest {
    names: Vec<String>,
}

impl fmt::Display for RenewalRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "renewal requested; a running agent orders within two seconds")
    }
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

impl fmt::Display for CertificateList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "no [[terminate]]: this agent needs no certificate");
        }
        for (index, row) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            row.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for CertificateRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.names.join(" "))?;
        let mut line = |key: &str, value: &str| writeln!(f, "  {key:<12} {value}");
        line("by", &self.source)?;
        if let Some(issuer) = &self.issuer {
            line("issuer", issuer)?;
        }
        match (self.not_after, &self.broken) {
            (Some(seconds), _) => line("not after", &format_time(from_unix_seconds(seconds)))?,
            (None, Some(error)) => line("broken", error)?,
            (None, None) => line("not after", "there is none yet")?,
        }
        if let Some(seconds) = self.next_order {
            let time = from_unix_seconds(seconds);
            let is_due = time <= SystemTime::now();
            line("next order", &if is_due { "now".into() } else { format_time(time) })?;
            line("last error", self.last_error.as_deref().unwrap_or("none"))?;
        }
        Ok(())
    }
}
