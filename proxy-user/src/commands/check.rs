//! `snisplit check`: validates a configuration.

use crate::config::Config;

/// The config in half a line, for `check`.
pub fn summary(config: &Config) -> String {
    let names: usize = config.all_routes().map(|route| route.names.len()).sum();
    format!(
        "{} listener(s), {} route(s) and {} terminated for {names} name(s), engine {}",
        config.listeners.len(),
        config.routes.iter().len(),
        config.terminates.iter().len(),
        config.engine
    )
}
