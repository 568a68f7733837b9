//! The engines that a configuration asks for, loaded and proved before the first connection.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tracing::info;
use tracing::level_filters::LevelFilter;

use crate::config::Config;
use crate::engine::probe::probe;
use crate::engine::sockmap::Sockmap;
use crate::engine::{Ladder, Tier};
use crate::kernel::{self, PINNED};
use crate::sys;

/// A ladder that has been tried, and the pins that go with it.
pub(super) async fn ladder(config: &Config) -> Result<(Ladder, Option<Pins>)> {
    if !config.engine.order().contains(&Tier::Sockmap) {
        return Ok((Ladder::default(), None));
    }
    let pins = Pins::open(&config.instance)?;
    let folder = pins.as_ref().map(|pins| pins.folder.as_path());
    let begun = Instant::now();
    let context = "engine: sockmap does not work here; `snisplit doctor` says more";
    let sockmap = Sockmap::load(LevelFilter::WARN, folder).context(context)?;
    probe(&sockmap).await.context(context)?;
    // Reading the kernel's types took some 80 MB for a moment.
    sys::trim_heap();
    let pinned = folder.map_or_else(|| "nowhere".into(), |folder| folder.display().to_string());
    info!(took = ?begun.elapsed(), pinned, "engine sockmap works: tried on this kernel");
    Ok((Ladder::with_sockmap(sockmap), pins))
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
        let folder = Path::new(kernel::BPFFS).join("snisplit").join(instance);
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
