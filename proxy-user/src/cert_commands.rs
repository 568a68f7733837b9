//! `snisplit certs`: what certificates there are, read from where the agent keeps them, whether it
//! runs or not.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};

use crate::acme::status::{Status, date, time};
use crate::acme::store::{self, Folder};
use crate::certs::facts::Facts;
use crate::certs::files;
use crate::config::terminate::Certificate;
use crate::config::{Config, Terminate};

/// All certificates of a configuration, a paragraph each.
pub fn list(config: &Config) -> Result<String> {
    let paragraphs: Result<Vec<String>> =
        config.terminates.iter().map(|one| describe(config, one)).collect();
    match paragraphs?.as_slice() {
        [] => Ok("no [[terminate]]: this agent needs no certificate\n".into()),
        paragraphs => Ok(paragraphs.join("\n")),
    }
}

/// Asks the running agent, or the next one, to renew the certificate of a name.
pub fn renew(config: &Config, name: &str) -> Result<()> {
    let has_name = |one: &&Arc<Terminate>| one.route.names.iter().any(|own| own.to_string() == name);
    let Some(terminate) = config.terminates.iter().find(has_name) else {
        bail!("no [[terminate]] has \"{name}\"");
    };
    let Some(folder) = certificate_dir(config, terminate) else {
        bail!("the certificate of \"{name}\" comes from files; replace these");
    };
    folder.ask_renewal().with_context(|| {
        format!("acme.state_dir: no agent has begun to keep \"{}\" there", terminate.route.label)
    })?;
    println!("asked for; a running agent orders within a second or two");
    Ok(())
}

fn certificate_dir(config: &Config, terminate: &Terminate) -> Option<Folder> {
    let acme = config.acme.as_ref()?;
    match terminate.certificate {
        Certificate::Ordered(_) => {
            Some(store::look(&acme.state_dir, &acme.directory, &terminate.route.label))
        }
        Certificate::Files { .. } => None,
    }
}

fn describe(config: &Config, terminate: &Terminate) -> Result<String> {
    let names: Vec<String> = terminate.route.names.iter().map(ToString::to_string).collect();
    let mut out = format!("{}\n", names.join(" "));
    let mut line = |what: &str, words: &str| {
        let _infallible = writeln!(out, "  {what:<12} {words}");
    };
    let (origin, facts, status) = match &terminate.certificate {
        Certificate::Files { cert, key } => {
            let found = files::load(cert, key).map(|(_, facts)| facts);
            (cert.display().to_string(), Some(found), None)
        }
        Certificate::Ordered(challenge) => {
            let folder = certificate_dir(config, terminate).context("[acme] is missing")?;
            let stored = folder.read()?;
            (challenge.name().to_owned(), stored.facts, stored.status)
        }
    };
    line("by", &origin);
    match facts {
        Some(Ok(Facts { issuer, not_after, .. })) => {
            line("issuer", &issuer);
            line("not after", &date(not_after));
        }
        Some(Err(why)) => line("broken", &why),
        None => line("not after", "there is none yet"),
    }
    if let Some(Status { next, last_error, .. }) = status {
        let next_order = time(next);
        let words = if next_order <= SystemTime::now() { "now".into() } else { date(next_order) };
        line("next order", &words);
        line("last error", last_error.as_deref().unwrap_or("none"));
    }
    Ok(out)
}
