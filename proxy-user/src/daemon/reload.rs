//! Reload of the configuration: new connections use the new one, running connections do not change.
//!
//! All steps that can fail come first, so a broken file changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, bail};
use snisplit_common::decide::AcmeBypass;
use tracing::{info, warn};

use super::config_source::ConfigSource;
use super::services::Services;
use crate::config::{Config, Route};
use crate::session::Shared;
use crate::telemetry::metrics::ReloadLabels;

/// Reads and applies the configuration, and logs and counts the result.
pub(super) fn reload(
    source: &ConfigSource,
    shared: &Shared,
    services: &mut Services,
    trigger: &str,
) {
    if let Some(log) = &shared.telemetry.access_log {
        log.reopen();
    }
    let result = match apply_new_config(source, shared, services) {
        Ok(()) => "ok",
        Err(error) => {
            warn!(trigger, "reload failed, the old configuration stays in force:\n{error:#}");
            "failed"
        }
    };
    shared.telemetry.metrics.reloads.get_or_create(&ReloadLabels { result }).inc();
}

fn apply_new_config(source: &ConfigSource, shared: &Shared, services: &mut Services) -> Result<()> {
    let new = Arc::new(source.load()?);
    if !shared.engine_selector.is_available(new.engine) {
        bail!("engine: {} was not loaded at the start; restart to use it", new.engine);
    }
    let prepared = services.listeners.prepare(&new)?;
    services.certificates.apply(&new, &shared.config.load())?;
    let old = shared.config.swap(Arc::clone(&new));
    shared.backends.retain_configured(&new);
    shared.resolver.set_nameservers(&new.nameservers);
    prepared.commit();
    services.health_checker.apply(&new);
    log_changes(&old, &new);
    Ok(())
}

fn log_changes(old: &Config, new: &Config) {
    let (before, after) = (routes_by_names(old), routes_by_names(new));
    let missing_in = |other: &BTreeMap<String, &Route>, routes: &BTreeMap<String, &Route>| {
        routes.keys().filter(|names| !other.contains_key(*names)).cloned().collect::<Vec<_>>()
    };
    let is_changed = |(names, route): &(&String, &&Route)| {
        before.get(*names).is_some_and(|old| !old.same_behaviour(route))
    };
    let changed: Vec<&String> = after.iter().filter(is_changed).map(|(names, _)| names).collect();
    let (added, removed) = (missing_in(&before, &after), missing_in(&after, &before));
    info!(routes = after.len(), ?added, ?removed, ?changed, "configuration reloaded");
    let restart_only =
        |c: &Config| (c.admin, c.access_log.clone(), c.access_log_format, c.instance.clone());
    if restart_only(old) != restart_only(new) {
        warn!("admin, access_log, access_log_format and instance take effect at the next start");
    }
    if old.acme_bypass != new.acme_bypass {
        warn_if_bypass_always(new);
    }
}

/// Returns the routes by their sorted names. A reload compares routes with the same names.
fn routes_by_names(config: &Config) -> BTreeMap<String, &Route> {
    let names = |route: &Route| {
        let mut names: Vec<String> = route.names.iter().map(ToString::to_string).collect();
        names.sort();
        names.join(",")
    };
    config.all_routes().map(|route| (names(route), route)).collect()
}

/// Logs a warning if the configuration has `acme_bypass = "always"`.
pub(super) fn warn_if_bypass_always(config: &Config) {
    if config.acme_bypass == AcmeBypass::Always {
        warn!(
            "acme_bypass = \"always\": the back end of a catch-all route receives the ACME \
             validations of every name that no other route has, and can get certificates for \
             them"
        );
    }
}
