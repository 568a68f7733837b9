//! `snisplit check`: validates a configuration.

use crate::config::Config;

/// Summarizes a configuration in one line: numbers of listeners, routes and names, and the engine.
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
