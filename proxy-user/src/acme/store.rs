//! What must survive: the account, orders under way and certificates, in `state_dir`.
//!
//! ```text
//! lock                                        held while an agent runs
//! HOST/account.json                           of the account at that CA
//! HOST/certificates/NAME/certificate.pem      key and chain, one file so that they match
//! HOST/certificates/NAME/order.json           an order under way, with the key it is for
//! HOST/certificates/NAME/status.json          for `snisplit certs`, and what failed
//! HOST/certificates/NAME/renew                asked for by `snisplit certs renew`
//! ```
//!
//! Folders are 0700, files 0600. A file is written beside its place, synced and moved there, so a
//! crash at any instant leaves the old one or the new one. What cannot be read is set aside.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::status::Status;
use crate::certs::facts::Facts;
use crate::certs::files;

/// The layout that this agent writes; another one is refused, not guessed at.
const LAYOUT: &str = "snisplit state, layout 1\n";

/// The state of one CA's account, locked for this agent; cloning shares the lock.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    state_dir: PathBuf,
    host: PathBuf,
    lock: Arc<File>,
}

/// The files of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

/// What a folder holds.
pub(crate) struct Seen {
    /// What the certificate says of itself, or why it cannot be read.
    pub(crate) facts: Option<Result<Facts, String>>,
    /// What the agent says of it.
    pub(crate) status: Option<Status>,
}

impl Store {
    /// Opens the state; the lock of `before` is kept if it is the same.
    pub(super) fn open(state_dir: &Path, directory: &str, before: Option<&Self>) -> Result<Self> {
        let lock = match before.filter(|before| before.state_dir == state_dir) {
            Some(before) => Arc::clone(&before.lock),
            None => Arc::new(Self::lock(state_dir)?),
        };
        let host = state_dir.join(host(directory));
        make(&host.join("certificates"))?;
        Ok(Self { state_dir: state_dir.to_owned(), host, lock })
    }

    fn lock(state_dir: &Path) -> Result<File> {
        make(state_dir).with_context(|| format!("acme.state_dir: {}", state_dir.display()))?;
        let path = state_dir.join("lock");
        let lock = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path);
        let lock = lock.with_context(|| format!("acme.state_dir: {}", path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "acme.state_dir: {} is in use by another snisplit; give each agent its own",
                state_dir.display()
            );
        }
        match fs::read_to_string(&path)?.as_str() {
            "" => (&lock).write_all(LAYOUT.as_bytes())?,
            LAYOUT => {}
            other => bail!(
                "acme.state_dir: {} has another layout ({}); this agent knows \"{}\"",
                state_dir.display(),
                other.trim(),
                LAYOUT.trim()
            ),
        }
        Ok(lock)
    }

    /// Where the account is kept.
    pub(super) fn account(&self) -> PathBuf {
        self.host.join("account.json")
    }

    /// The folder of a certificate, by the first name of its `[[terminate]]`.
    pub(super) fn folder(&self, label: &str) -> Result<Folder> {
        let folder = folder(&self.host, label);
        make(&folder.0)?;
        Ok(folder)
    }
}

/// A folder to read from, whether an agent runs or not.
pub(crate) fn look(state_dir: &Path, directory: &str, label: &str) -> Folder {
    folder(&state_dir.join(host(directory)), label)
}

fn folder(host: &Path, label: &str) -> Folder {
    Folder(host.join("certificates").join(label.replace('*', "_")))
}

/// Host and port of a URL, which is what an account belongs to.
fn host(directory: &str) -> String {
    let rest = directory.strip_prefix("https://").unwrap_or(directory);
    rest.split('/').next().unwrap_or_default().replace(':', "_")
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

impl Folder {
    /// What is there, for who only looks: nothing is set aside.
    pub(crate) fn read(&self) -> Result<Seen> {
        let bytes = |path: PathBuf| match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let facts = bytes(self.certificate())?.map(|pem| Ok(files::pair(&pem, &pem)?.1));
        let status = bytes(self.status())?;
        let status = status.map(|json| serde_json::from_slice(&json)).transpose()?;
        Ok(Seen { facts, status })
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }

    pub(super) fn order(&self) -> PathBuf {
        self.0.join("order.json")
    }

    pub(super) fn status(&self) -> PathBuf {
        self.0.join("status.json")
    }

    /// Asks the agent to renew now.
    pub(crate) fn ask_renewal(&self) -> io::Result<()> {
        write(&self.0.join("renew"), b"")
    }

    /// Whether that was asked for, once.
    pub(super) fn take_renewal(&self) -> bool {
        fs::remove_file(self.0.join("renew")).is_ok()
    }
}

/// Writes a file so that it is there whole or not at all, even after a power cut.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    File::open(folder)?.sync_all()
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    write(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file, if it is there; one that `parse` cannot make sense of is set aside.
pub(super) fn read<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    match parse(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(why) => {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let aside = path.with_extension(format!("corrupt-{}", since_1970.as_secs()));
            fs::rename(path, &aside)?;
            warn!("{} is corrupt ({why}); it is now {}", path.display(), aside.display());
            Ok(None)
        }
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    read(path, |bytes| serde_json::from_slice(bytes).map_err(|why| why.to_string()))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
