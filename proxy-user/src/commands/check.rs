//! `snisplit check`: validates a configuration.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::counted;
use crate::config::{Config, ConfigErrors};

/// The result of validating a configuration.
#[derive(Debug, Serialize)]
pub struct CheckReport<'e> {
    /// The file; `flags` if there is none.
    source: String,
    valid: bool,
    summary: Option<Summary>,
    problems: Option<&'e ConfigErrors>,
}

/// What a valid configuration has.
#[derive(Debug, Serialize)]
struct Summary {
    listeners: usize,
    routes: usize,
    terminated_routes: usize,
    names: usize,
    engine: String,
}

impl<'e> CheckReport<'e> {
    /// Reports on what was loaded from a file, or from flags alone.
    pub fn new(path: Option<&Path>, loaded: Result<&Config, &'e ConfigErrors>) -> Self {
        Self {
            source: path.unwrap_or(Path::new("flags")).display().to_string(),
            valid: loaded.is_ok(),
            summary: loaded.ok().map(Summary::new),
            problems: loaded.err(),
        }
    }
}

impl Summary {
    fn new(config: &Config) -> Self {
        Self {
            listeners: config.listeners.len(),
            routes: config.routes.iter().len(),
            terminated_routes: config.terminates.iter().len(),
            names: config.all_routes().map(|route| route.names.len()).sum(),
            engine: config.engine.to_string(),
        }
    }
}

impl fmt::Display for CheckReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problems) = self.problems {
            writeln!(f, "{problems}")?;
        }
        let Some(Summary { listeners, routes, terminated_routes, names, engine }) = &self.summary
        else {
            return Ok(());
        };
        writeln!(
            f,
            "{}: ok, {}, {}, {}, {}, engine {engine}",
            self.source,
            counted(*listeners, "listener"),
            counted(*routes, "route"),
            counted(*terminated_routes, "terminated route"),
            counted(*names, "name"),
        )
    }
}
