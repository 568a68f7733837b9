//! The sources of certificates: orders by ACME, and certificate files.

use std::sync::Arc;

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::acme::CertificateManager;
use crate::certs::CertStore;
use crate::certs::file_watcher::CertFileWatcher;
use crate::config::Config;

/// Manager of ordered certificates, and watcher of certificate files.
pub(super) struct CertificateSources {
    cert_store: CertStore,
    manager: CertificateManager,
    file_watcher: Option<JoinHandle<()>>,
}

impl CertificateSources {
    pub(super) fn new(cert_store: CertStore) -> Self {
        Self {
            manager: CertificateManager::new(cert_store.clone()),
            cert_store,
            file_watcher: None,
        }
    }

    /// Serves the certificates of `config`, and starts their orders and the file watcher. If this
    /// fails, the certificates of `previous` stay in use.
    ///
    /// # Errors
    ///
    /// The state directory cannot be used, or a key for session tickets cannot be generated.
    pub(super) fn apply(&mut self, config: &Arc<Config>, previous: &Config) -> Result<()> {
        self.cert_store.apply(config)?;
        if let Err(error) = self.manager.apply(config) {
            self.cert_store.apply(previous)?;
            return Err(error);
        }
        if let Some(watcher) = self.file_watcher.take() {
            watcher.abort();
        }
        let watcher = CertFileWatcher::install(config, self.cert_store.clone());
        self.file_watcher = Some(tokio::spawn(watcher.run()));
        Ok(())
    }
}
