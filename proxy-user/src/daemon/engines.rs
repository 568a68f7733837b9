//! The engines that a configuration asks for, loaded and proved before the first connection.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};

use crate::config::Config;
use crate::engine::{Choice, Ladder, Tier, probe};
use crate::kernel::{self, PINNED};
use crate::presence::{Note, Presence};
use crate::sys;

/// The engines, what the trial of the kernel's came to, and the pins that go with it.
pub(super) struct Engines {
    pub(super) ladder: Ladder,
    pub(super) sockmap: String,
    pub(super) pins: Option<Pins>,
}

impl Engines {
    /// Loads and tries what the configuration asks for. `auto` takes the kernel's engine where it
    /// works, and says why where it does not.
    pub(super) async fn load(config: &Config) -> Result<Self> {
        let none = |why| Self { ladder: Ladder::default(), sockmap: why, pins: None };
        match (config.engine, probe::fault()) {
            (Choice::Only(Tier::Copy | Tier::Splice), _) => Ok(none("not asked for".into())),
            (Choice::Only(Tier::Sockmap), fault) => {
                let why = "engine: sockmap does not work here; `snisplit doctor` says more";
                let engines =
                    Self::with_sockmap(Pins::open(&config.instance)?).await.context(why)?;
                if let Some(fault) = fault {
                    warn!("sockmap passed its trial, but {fault}; `engine = \"auto\"` avoids it");
                }
                Ok(engines)
            }
            (Choice::Auto, Some(fault)) => Ok(none(format!("not used: {fault}"))),
            (Choice::Auto, None) => {
                let pins = Pins::open(&config.instance).unwrap_or_else(|why| {
                    info!("the kernel's maps are not pinned: {why:#}");
                    None
                });
                let tried = Self::with_sockmap(pins).await;
                Ok(tried.unwrap_or_else(|why| none(format!("does not work here: {why:#}"))))
            }
        }
    }

    async fn with_sockmap(pins: Option<Pins>) -> Result<Self> {
        let begun = Instant::now();
        let folder = pins.as_ref().map(|pins| pins.folder.as_path());
        let tried = probe::proved(LevelFilter::WARN, folder).await;
        // Reading the kernel's types took some 80 MB for a moment.
        sys::trim_heap();
        let ladder = Ladder::with_sockmap(tried?);
        let sockmap = format!("works: tried on this kernel in {} ms", begun.elapsed().as_millis());
        Ok(Self { ladder, sockmap, pins })
    }

    /// Leaves the note for `snisplit status`. Without one the agent does all it does with one.
    pub(super) fn announce(&self, config: &Config) -> Option<Note> {
        let pinned = self.pins.as_ref().map(|pins| pins.folder.display().to_string());
        info!(sockmap = self.sockmap, pinned, "engines");
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let presence = Presence {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started: started.as_secs(),
            engine: config.engine.to_string(),
            sockmap: self.sockmap.clone(),
        };
        let noted = presence.announce(&config.instance);
        noted.inspect_err(|why| info!(%why, "`snisplit status` will not know this agent")).ok()
    }
}

/// The folder of this instance's pins, locked; dropping it removes them.
pub(super) struct Pins {
    folder: PathBuf,
    _lock: File,
}

impl Pins {
    /// `None` without a bpffs: then `bpftool` has to find the maps by their ids.
    fn open(instance: &str) -> Result<Option<Self>> {
        if !kernel::has_bpffs() {
            return Ok(None);
        }
        let folder = kernel::pins(instance);
        let context = || folder.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(context)?;
        let lock = File::open(&folder).with_context(context)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("instance: another snisplit runs as \"{instance}\"; give this one its own name");
        }
        // What is left of one that was killed belongs to no flow any more.
        remove_all(&folder);
        Ok(Some(Self { folder, _lock: lock }))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        remove_all(&self.folder);
        let _not_ours_alone = fs::remove_dir(&self.folder);
    }
}

fn remove_all(folder: &Path) {
    for name in PINNED {
        let _gone_already = fs::remove_file(folder.join(name));
    }
}
