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

use super::CertStore;
use super::info::CertInfo;
use crate::config::terminate::CertificateSource;
use crate::config::{Config, Terminate};
use crate::file_stamp::{FileStamp, read_stamp};

/// How often files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Reads a chain and its key; they must belong together.
pub(crate) fn load(cert: &Path, key: &Path) -> Result<(CertifiedKey, CertInfo), String> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let chain = read(cert)?;
    let secret = read(key)?;
    parse_pair(&chain, &secret)
        .map_err(|why| format!("{} and {}: {why}", cert.display(), key.display()))
}

/// The same from what the files hold.
pub(crate) fn parse_pair(chain: &[u8], key: &[u8]) -> Result<(CertifiedKey, CertInfo), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|why| format!("the certificate is no PEM: {why}"))?;
    if chain.is_empty() {
        return Err("there is no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|why| format!("the key: {why}"))?;
    let info = CertInfo::from_leaf(&chain[0])?;
    let pair = CertifiedKey::from_der(chain, key, &default_provider());
    Ok((pair.map_err(|why| why.to_string())?, info))
}

/// Whether the files are good for all the names, and if not, why.
pub(crate) fn verify_names(cert: &Path, key: &Path, names: &[Pattern]) -> Result<(), String> {
    let (_, info) = load(cert, key)?;
    match names.iter().find(|name| !info.covers_pattern(name)) {
        Some(name) => {
            Err(format!("{} is for {}, not for \"{name}\"", cert.display(), info.names.join(", ")))
        }
        None => Ok(()),
    }
}

/// The files that a configuration names.
pub(crate) struct CertFileWatcher {
    store: CertStore,
    files: Vec<CertFilePair>,
}

struct CertFilePair {
    label: String,
    cert: PathBuf,
    key: PathBuf,
    loaded: Option<[FileStamp; 2]>,
    /// Did not fit at the last look: perhaps only one of the two was written yet.
    rejected_once: Option<[FileStamp; 2]>,
}

impl CertFileWatcher {
    /// Installs them: whoever is accepted from now on is served by them.
    pub(crate) fn install(config: &Config, store: CertStore) -> Self {
        let file = |one: &Terminate| match &one.certificate {
            CertificateSource::Files { cert, key } => Some(CertFilePair {
                label: one.route.label.clone(),
                cert: cert.clone(),
                key: key.clone(),
                loaded: None,
                rejected_once: None,
            }),
            CertificateSource::Acme(_) => None,
        };
        let files = config.terminates.iter().filter_map(|one| file(one)).collect();
        let mut watcher = Self { store, files };
        watcher.poll();
        watcher
    }

    /// Installs them again whenever one changes; until it is dropped.
    pub(crate) async fn run(mut self) {
        while !self.files.is_empty() {
            sleep(POLL_INTERVAL).await;
            self.poll();
        }
    }

    fn poll(&mut self) {
        for CertFilePair { label, cert, key, loaded: seen, rejected_once: doubted } in
            &mut self.files
        {
            let current = read_stamp(cert).zip(read_stamp(key)).map(|(cert, key)| [cert, key]);
            if current.is_none() || *seen == current {
                continue;
            }
            match load(cert, key) {
                Ok((pair, info)) => {
                    if seen.is_some() {
                        info!(name = %label, cert = %cert.display(), "certificate read again");
                    }
                    self.store.install(label, pair, info);
                }
                Err(_) if *doubted != current => {
                    *doubted = current;
                    continue;
                }
                Err(why) => warn!(name = %label, "the old certificate stays: {why}"),
            }
            *seen = current;
        }
    }
}
