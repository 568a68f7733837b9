//! Everything that certificates come from, put in step with a configuration.

use std::sync::Arc;

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::acme::Keepers;
use crate::certs::Keyring;
use crate::certs::files::Watched;
use crate::config::Config;

/// The keepers of ordered certificates, and the watcher of files.
pub(super) struct Certificates {
    keyring: Keyring,
    keepers: Keepers,
    files: Option<JoinHandle<()>>,
}

impl Certificates {
    pub(super) fn new(keyring: Keyring) -> Self {
        Self { keepers: Keepers::new(keyring.clone()), keyring, files: None }
    }

    /// Serves and keeps what a configuration wants; `before` is what is served so far, and stays so
    /// if this fails.
    pub(super) fn apply(&mut self, config: &Arc<Config>, before: &Config) -> Result<()> {
        self.keyring.apply(config)?;
        if let Err(error) = self.keepers.apply(config) {
            self.keyring.apply(before)?;
            return Err(error);
        }
        if let Some(watching) = self.files.take() {
            watching.abort();
        }
        let files = Watched::install(config, self.keyring.clone());
        self.files = Some(tokio::spawn(files.keep()));
        Ok(())
    }
}
