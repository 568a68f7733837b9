//! The engines that a configuration names. Each is loaded and tested before a connection uses it.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use tokio::runtime::Handle;
use tokio::task;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};

use super::packet_engine;
use super::pin_dir::PinDir;
use crate::config::Config;
use crate::engine::{EngineChoice, EngineKind, EngineSelector, self_test};
use crate::instance::{InstanceInfo, InstanceLock, SockmapStatus};
use crate::session::Shared;
use crate::sys;

/// Pins and instance file of the agent. Dropping the guard removes them.
pub(super) struct EngineGuard {
    pins: Option<PinDir>,
    _instance_lock: Option<InstanceLock>,
}

impl EngineGuard {
    /// Makes dropping the guard remove the pins of adopted flows too.
    pub(super) fn mark_adopted(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.remove_on_drop();
        }
    }
}

/// Loads and tests the engine that the configuration names. With `engine = "auto"` this is sockmap,
/// unless the kernel has a known bug; a failure is then no error.
///
/// # Errors
///
/// The engine that the configuration names does not work on this host.
pub(super) async fn load(config: &Config, selector: &EngineSelector) -> Result<EngineGuard> {
    let (status, description, pins) = match (config.engine, self_test::known_kernel_bug()) {
        (EngineChoice::Only(EngineKind::Copy | EngineKind::Splice), _) => {
            (SockmapStatus::NotRequested, "not requested".into(), None)
        }
        (EngineChoice::Only(EngineKind::Packet), _) => {
            let pins = PinDir::acquire_with_flows(&config.instance)?;
            packet_engine::load(config, selector, pins.as_ref().map(PinDir::path))
                .context("engine: packet does not work on this host; run `snisplit doctor`")?;
            (SockmapStatus::NotRequested, "not requested".into(), pins)
        }
        (EngineChoice::Only(EngineKind::Sockmap), bug) => {
            let pins = PinDir::acquire_clean(&config.instance)?;
            let description = load_sockmap(selector, pins.as_ref().map(PinDir::path))
                .await
                .context("engine: sockmap does not work on this host; run `snisplit doctor`")?;
            if let Some(bug) = bug {
                warn!("sockmap passed its self-test, but {bug}; engine = \"auto\" avoids it");
            }
            (SockmapStatus::Works, description, pins)
        }
        (EngineChoice::Auto, Some(bug)) => {
            (SockmapStatus::KernelBug, format!("not used: {bug}"), None)
        }
        (EngineChoice::Auto, None) => {
            let pins = PinDir::acquire_clean(&config.instance).unwrap_or_else(|error| {
                info!("BPF maps are not pinned: {error:#}");
                None
            });
            match load_sockmap(selector, pins.as_ref().map(PinDir::path)).await {
                Ok(description) => (SockmapStatus::Works, description, pins),
                Err(error) => {
                    (SockmapStatus::Failed, format!("does not work on this host: {error:#}"), None)
                }
            }
        }
    };
    let pin_dir = pins.as_ref().map(|pins| pins.path().display().to_string());
    info!(sockmap = description, pin_dir, "engines loaded");
    Ok(EngineGuard { _instance_lock: publish_instance_info(config, status, description), pins })
}

/// Loads the engine of `engine = "auto"` while connections are served already. Aborting the task drops
/// the [`EngineGuard`].
pub(super) async fn load_in_background(shared: Arc<Shared>) {
    let _engine_guard = load(&shared.config.load_full(), &shared.engine_selector).await;
    pending().await
}

/// Loads the sockmap engine, tests it over loopback and makes it available. Returns a sentence about
/// the test.
async fn load_sockmap(selector: &EngineSelector, pins: Option<&Path>) -> Result<String> {
    let started = Instant::now();
    // Parsing BTF and verifying the programs block this thread; the runtime moves its other tasks.
    let loaded = task::block_in_place(|| {
        Handle::current().block_on(self_test::load_and_test(LevelFilter::WARN, pins))
    });
    // Parsing BTF takes some 80 MB, which the allocator would not return to the kernel.
    sys::trim_heap();
    selector.set_sockmap(loaded?);
    Ok(format!("works: tested on this kernel in {} ms", started.elapsed().as_millis()))
}

/// Writes the instance file. Only `snisplit status` needs it, so the agent runs without it too.
fn publish_instance_info(
    config: &Config,
    sockmap_status: SockmapStatus,
    sockmap_description: String,
) -> Option<InstanceLock> {
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let info = InstanceInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_at: started_at.as_secs(),
        engine: config.engine.to_string(),
        sockmap_status,
        sockmap_description,
    };
    info.publish(&config.instance)
        .inspect_err(|error| {
            info!(%error, "cannot write the instance file; snisplit status will not see this agent");
        })
        .ok()
}
