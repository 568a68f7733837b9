//! The source of the configuration: a file, flags, or both.

use std::path::PathBuf;

use super::config_watcher::ConfigWatcher;
use crate::certs::pem;
use crate::config::{Config, ConfigErrors, Overrides};

/// File and flags that the agent reads at its start and at each reload.
#[derive(Debug)]
pub struct ConfigSource {
    /// Configuration file; `None` if there are flags only.
    pub path: Option<PathBuf>,
    /// Flags, which take precedence over the file.
    pub overrides: Overrides,
    /// Whether to reload as soon as the file changes.
    pub watch: bool,
}

impl ConfigSource {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or file and flags have problems. The error lists all of them.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        Config::load(self.path.as_deref(), &self.overrides, pem::verify_names)
    }

    pub(super) fn watcher(&self) -> ConfigWatcher {
        ConfigWatcher::new(self.path.clone().filter(|_| self.watch))
    }
}
