//! The engines that a configuration asks for, loaded and proved before the first connection.

use std::fs::{self, DirBuilder, File};
use std::future::pending;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Handle;
use tokio::task;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};

use crate::bpf;
use crate::config::Config;
use crate::engine::{EngineChoice, EngineKind, EngineSelector, self_test};
use crate::instance::{InstanceInfo, InstanceLock};
use crate::session::Shared;
use crate::sys;

mod packet;

/// What must stay as long as the agent runs: the pins, and the note for `snisplit status`.
pub(super) struct EngineGuard {
    pins: Option<PinDir>,
    _instance_info: Option<InstanceLock>,
}

impl EngineGuard {
    /// From now on flows that were there before end with this agent.
    pub(super) fn mark_adopted(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.remove_on_drop = true;
        }
    }
}

/// Loads and tries what the configuration asks for. `auto` takes the kernel's engine where it works,
/// and says why where it does not; it cannot fail.
pub(super) async fn load(config: &Config, ladder: &EngineSelector) -> Result<EngineGuard> {
    let (sockmap, pins) = match (config.engine, self_test::known_kernel_bug()) {
        (EngineChoice::Only(EngineKind::Copy | EngineKind::Splice), _) => {
            ("not asked for".into(), None)
        }
        (EngineChoice::Only(EngineKind::Packet), _) => {
            let pins = PinDir::acquire_with_flows(&config.instance)?;
            packet::load(config, ladder, pins.as_ref().map(|pins| pins.path.as_path()))
                .context("engine: packet does not work here; `snisplit doctor` says more")?;
            ("not asked for".into(), pins)
        }
        (EngineChoice::Only(EngineKind::Sockmap), fault) => {
            let why = "engine: sockmap does not work here; `snisplit doctor` says more";
            let pins = PinDir::acquire_clean(&config.instance)?;
            let words = self_test(ladder, pins.as_ref()).await.context(why)?;
            if let Some(fault) = fault {
                warn!("sockmap passed its trial, but {fault}; `engine = \"auto\"` avoids it");
            }
            (words, pins)
        }
        (EngineChoice::Auto, Some(fault)) => (format!("not used: {fault}"), None),
        (EngineChoice::Auto, None) => {
            let pins = PinDir::acquire_clean(&config.instance).unwrap_or_else(|why| {
                info!("the kernel's maps are not pinned: {why:#}");
                None
            });
            match self_test(ladder, pins.as_ref()).await {
                Ok(words) => (words, pins),
                Err(why) => (format!("does not work here: {why:#}"), None),
            }
        }
    };
    let pinned = pins.as_ref().map(|pins| pins.path.display().to_string());
    info!(sockmap, pinned, "engines");
    Ok(EngineGuard { _instance_info: publish_instance_info(config, sockmap), pins })
}

/// For `auto`: tries while connections are served already. Aborting it gives up what it keeps.
pub(super) async fn load_in_background(shared: Arc<Shared>) {
    let _engine_guard = load(&shared.config.load_full(), &shared.engine_selector).await;
    pending().await
}

/// Adds the kernel's engine to the ladder if it works; what to say of it.
async fn self_test(ladder: &EngineSelector, pins: Option<&PinDir>) -> Result<String> {
    let started = Instant::now();
    let pin_path = pins.map(|pins| pins.path.as_path());
    // Reading the kernel's types and the verifier take their time; others go on elsewhere.
    let tried = task::block_in_place(|| {
        Handle::current().block_on(self_test::load_and_test(LevelFilter::WARN, pin_path))
    });
    // The types took some 80 MB for a moment.
    sys::trim_heap();
    ladder.set_sockmap(tried?);
    Ok(format!("works: tried on this kernel in {} ms", started.elapsed().as_millis()))
}

/// Leaves the note for `snisplit status`. Without one the agent does all it does with one.
fn publish_instance_info(config: &Config, sockmap: String) -> Option<InstanceLock> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let presence = InstanceInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started: started.as_secs(),
        engine: config.engine.to_string(),
        sockmap,
    };
    let noted = presence.publish(&config.instance);
    noted.inspect_err(|why| info!(%why, "`snisplit status` will not know this agent")).ok()
}

/// The folder of this instance's pins, locked; dropping it removes them.
pub(super) struct PinDir {
    path: PathBuf,
    /// Not if they are of flows that were there before, which are not to end with a start that fails.
    remove_on_drop: bool,
    _lock: File,
}

impl PinDir {
    /// `None` without a bpffs: then `bpftool` has to find the maps by their ids.
    fn acquire_clean(instance: &str) -> Result<Option<Self>> {
        let pins = Self::lock(instance)?;
        // What is left of one that was killed belongs to no flow any more, or to flows that this one
        // has no engine for.
        if let Some(pins) = &pins {
            bpf::packet::detach_all(&pins.path);
            remove_entries(&pins.path, |_| true);
        }
        Ok(pins)
    }

    /// Keeps flows that have outlived their agent.
    fn acquire_with_flows(instance: &str) -> Result<Option<Self>> {
        let mut pins = Self::lock(instance)?;
        if let Some(pins) = &mut pins {
            remove_entries(&pins.path, |name| !bpf::packet::is_own_pin(name));
            pins.remove_on_drop = fs::read_dir(&pins.path)?.next().is_none();
        }
        Ok(pins)
    }

    fn lock(instance: &str) -> Result<Option<Self>> {
        if !bpf::is_bpffs_mounted() {
            return Ok(None);
        }
        let path = bpf::pin_dir(instance);
        let context = || path.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(context)?;
        let lock = File::open(&path).with_context(context)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("instance: another snisplit runs as \"{instance}\"; give this one its own name");
        }
        Ok(Some(Self { path, remove_on_drop: true, _lock: lock }))
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        if !self.remove_on_drop {
            return;
        }
        bpf::packet::detach_all(&self.path);
        remove_entries(&self.path, |_| true);
        let _not_ours_alone = fs::remove_dir(&self.path);
    }
}

fn remove_entries(dir: &Path, which: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if which(&entry.file_name().to_string_lossy()) {
            let _gone_already = fs::remove_file(entry.path());
        }
    }
}
