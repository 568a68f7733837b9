//! Certificates and keys in PEM files, read again when they change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use snisplit_common::server_name::Pattern;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Keyring;
use super::facts::Facts;
use crate::file_stamp::{FileStamp, read_stamp};
use crate::config::terminate::Certificate;
use crate::config::{Config, Terminate};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Reads a chain and its key; they must belong together.
pub(crate) fn load(cert: &Path, key: &Path) -> Result<(CertifiedKey, Facts), String> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let chain = read(cert)?;
    let secret = read(key)?;
    pair(&chain, &secret).map_err(|why| format!("{} and {}: {why}", cert.display(), key.display()))
}

/// The same from what the files hold.
pub(crate) fn pair(chain: &[u8], key: &[u8]) -> Result<(CertifiedKey, Facts), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|why| format!("the certificate is no PEM: {why}"))?;
    if chain.is_empty() {
        return Err("there is no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|why| format!("the key: {why}"))?;
    let facts = Facts::of(&chain[0])?;
    let pair = CertifiedKey::from_der(chain, key, &default_provider());
    Ok((pair.map_err(|why| why.to_string())?, facts))
}

/// Whether the files are good for all the names, and if not, why.
pub(crate) fn covers(cert: &Path, key: &Path, names: &[Pattern]) -> Result<(), String> {
    let (_, facts) = load(cert, key)?;
    match names.iter().find(|name| !facts.cover_all(name)) {
        Some(name) => {
            Err(format!("{} is for {}, not for \"{name}\"", cert.display(), facts.names.join(", ")))
        }
        None => Ok(()),
    }
}

/// The files that a configuration names.
pub(crate) struct Watched {
    keyring: Keyring,
    files: Vec<File>,
}

struct File {
    label: String,
    cert: PathBuf,
    key: PathBuf,
    seen: Option<[FileStamp; 2]>,
    /// Did not fit at the last look: perhaps only one of the two was written yet.
    doubted: Option<[FileStamp; 2]>,
}

impl Watched {
    /// Installs them: whoever is accepted from now on is served by them.
    pub(crate) fn install(config: &Config, keyring: Keyring) -> Self {
        let file = |one: &Terminate| match &one.certificate {
            Certificate::Files { cert, key } => Some(File {
                label: one.route.label.clone(),
                cert: cert.clone(),
                key: key.clone(),
                seen: None,
                doubted: None,
            }),
            Certificate::Ordered(_) => None,
        };
        let files = config.terminates.iter().filter_map(|one| file(one)).collect();
        let mut watched = Self { keyring, files };
        watched.look();
        watched
    }

    /// Installs them again whenever one changes; until it is dropped.
    pub(crate) async fn keep(mut self) {
        while !self.files.is_empty() {
            sleep(EVERY).await;
            self.look();
        }
    }

    fn look(&mut self) {
        for File { label, cert, key, seen, doubted } in &mut self.files {
            let now = read_stamp(cert).zip(read_stamp(key)).map(|(cert, key)| [cert, key]);
            if now.is_none() || *seen == now {
                continue;
            }
            match load(cert, key) {
                Ok((pair, facts)) => {
                    if seen.is_some() {
                        info!(name = %label, cert = %cert.display(), "certificate read again");
                    }
                    self.keyring.install(label, pair, facts);
                }
                Err(_) if *doubted != now => {
                    *doubted = now;
                    continue;
                }
                Err(why) => warn!(name = %label, "the old certificate stays: {why}"),
            }
            *seen = now;
        }
    }
}
