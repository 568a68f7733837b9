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

/// How often files are looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

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
            match pem::load(cert, key) {
                Ok((pair, info)) => {
                    if seen.is_some() {
                        info!(name = %label, cert = %cert.display(), "certificate reloaded");
                    }
                    self.store.install(label, pair, info);
                }
                Err(_) if *doubted != current => {
                    *doubted = current;
                    continue;
                }
                Err(why) => {
                    warn!(name = %label, "certificate not reloaded, the old one stays in use: {why}")
                }
            }
            *seen = current;
        }
    }
}
