//! The watcher of certificate files: it loads them again when they change.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::pem;
use super::store::CertStore;
use crate::config::terminate::CertificateSource;
use crate::config::{Config, Terminate};
use crate::file_stamp::{FileStamp, read_stamp};

/// Time between two polls of the files.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watcher of all certificate files of a configuration.
pub(crate) struct CertFileWatcher {
    store: CertStore,
    files: Vec<CertFilePair>,
}

struct CertFilePair {
    label: String,
    cert: PathBuf,
    key: PathBuf,
    /// Stamps of certificate and key when they were last loaded or rejected.
    seen: Option<[FileStamp; 2]>,
    /// Stamps of a pair that failed once. Perhaps only one of the two files was written yet, so the
    /// next poll tries again before the failure is logged.
    failed_once: Option<[FileStamp; 2]>,
}

impl CertFileWatcher {
    /// Loads and installs all certificate files of a configuration.
    pub(crate) fn install(config: &Config, store: CertStore) -> Self {
        let file_pair = |terminate: &Terminate| match &terminate.certificate {
            CertificateSource::Files { cert, key } => Some(CertFilePair {
                label: terminate.route.label.clone(),
                cert: cert.clone(),
                key: key.clone(),
                seen: None,
                failed_once: None,
            }),
            CertificateSource::Acme(_) => None,
        };
        let files = config.terminates.iter().filter_map(|terminate| file_pair(terminate)).collect();
        let mut watcher = Self { store, files };
        watcher.poll();
        watcher
    }

    /// Installs changed files until the future is dropped.
    pub(crate) async fn run(mut self) {
        while !self.files.is_empty() {
            sleep(POLL_INTERVAL).await;
            self.poll();
        }
    }

    fn poll(&mut self) {
        for CertFilePair { label, cert, key, seen, failed_once } in &mut self.files {
            let current = read_stamp(cert).zip(read_stamp(key)).map(|(cert, key)| [cert, key]);
            if current.is_none() || *seen == current {
                continue;
            }
            match pem::load(cert, key) {
                Ok((pair, info)) => {
                    if seen.is_some() {
                        info!(name = %label, cert = %cert.display(), "certificate reloaded");
                    }
                    self.store.install(label, pair, info);
                }
                Err(_) if *failed_once != current => {
                    *failed_once = current;
                    continue;
                }
                Err(error) => {
                    warn!(
                        name = %label,
                        "certificate not reloaded, the old one stays in use: {error}"
                    );
                }
            }
            *seen = current;
        }
    }
}
