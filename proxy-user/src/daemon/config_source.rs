//! Where the agent reads its configuration, at its start and at each reload.

use std::path::PathBuf;

use super::config_watcher::ConfigWatcher;
use crate::certs::pem;
use crate::config::{Config, ConfigErrors, Overrides};

/// Where the configuration comes from, and comes from again at a reload.
#[derive(Debug)]
pub struct ConfigSource {
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// The flags, which win over it.
    pub overrides: Overrides,
    /// Whether to reload as soon as the file changes.
    pub watch: bool,
}

impl ConfigSource {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// All problems of the file and the flags.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(self.path.as_deref(), &self.overrides, pem::verify_names)
    }

    pub(super) fn watcher(&self) -> ConfigWatcher {
        ConfigWatcher::new(self.path.clone().filter(|_| self.watch))
    }
}
