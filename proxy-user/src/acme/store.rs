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

use super::status::CertificateStatus;
use crate::certs::info::CertInfo;
use crate::certs::pem;

/// The layout that this agent writes; another one is refused, not guessed at.
const STATE_LAYOUT: &str = "snisplit state, layout 1\n";

/// The state of one CA's account, locked for this agent; cloning shares the lock.
#[derive(Clone, Debug)]
pub(crate) struct StateStore {
    state_dir: PathBuf,
    ca_dir: PathBuf,
    lock: Arc<File>,
}

/// The files of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct CertificateDir(PathBuf);

/// What a folder holds.
pub(crate) struct StoredCertificate {
    /// What the certificate says of itself, or why it cannot be read.
    pub(crate) info: Option<Result<CertInfo, String>>,
    /// What the agent says of it.
    pub(crate) status: Option<CertificateStatus>,
}

impl StateStore {
    /// Opens the state; the lock of `before` is kept if it is the same.
    pub(super) fn open(state_dir: &Path, directory: &str, previous: Option<&Self>) -> Result<Self> {
        let lock = match previous.filter(|before| before.state_dir == state_dir) {
            Some(before) => Arc::clone(&before.lock),
            None => Arc::new(Self::lock(state_dir)?),
        };
        let ca_dir = state_dir.join(ca_dir_name(directory));
        create_dir(&ca_dir.join("certificates"))?;
        Ok(Self { state_dir: state_dir.to_owned(), ca_dir, lock })
    }

    fn lock(state_dir: &Path) -> Result<File> {
        create_dir(state_dir)
            .with_context(|| format!("acme.state_dir: {}", state_dir.display()))?;
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
            "" => (&lock).write_all(STATE_LAYOUT.as_bytes())?,
            STATE_LAYOUT => {}
            other => bail!(
                "acme.state_dir: {} has another layout ({}); this agent knows \"{}\"",
                state_dir.display(),
                other.trim(),
                STATE_LAYOUT.trim()
            ),
        }
        Ok(lock)
    }

    /// Where the account is kept.
    pub(super) fn account_path(&self) -> PathBuf {
        self.ca_dir.join("account.json")
    }

    /// The folder of a certificate, by the first name of its `[[terminate]]`.
    pub(super) fn certificate_dir(&self, label: &str) -> Result<CertificateDir> {
        let dir = certificate_dir_in(&self.ca_dir, label);
        create_dir(&dir.0)?;
        Ok(dir)
    }
}

/// A folder to read from, whether an agent runs or not.
pub(crate) fn open_readonly(state_dir: &Path, directory: &str, label: &str) -> CertificateDir {
    certificate_dir_in(&state_dir.join(ca_dir_name(directory)), label)
}

fn certificate_dir_in(ca_dir: &Path, label: &str) -> CertificateDir {
    CertificateDir(ca_dir.join("certificates").join(label.replace('*', "_")))
}

/// Host and port of a URL, which is what an account belongs to.
fn ca_dir_name(directory: &str) -> String {
    let rest = directory.strip_prefix("https://").unwrap_or(directory);
    rest.split('/').next().unwrap_or_default().replace(':', "_")
}

fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

impl CertificateDir {
    /// What is there, for who only looks: nothing is set aside.
    pub(crate) fn read(&self) -> Result<StoredCertificate> {
        let bytes = |path: PathBuf| match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let info = bytes(self.certificate_path())?.map(|pem| Ok(pem::parse_pair(&pem, &pem)?.1));
        let status = bytes(self.status_path())?;
        let status = status.map(|json| serde_json::from_slice(&json)).transpose()?;
        Ok(StoredCertificate { info, status })
    }

    pub(super) fn certificate_path(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }

    pub(super) fn order_path(&self) -> PathBuf {
        self.0.join("order.json")
    }

    pub(super) fn status_path(&self) -> PathBuf {
        self.0.join("status.json")
    }

    /// Asks the agent to renew now.
    pub(crate) fn request_renewal(&self) -> io::Result<()> {
        write_atomic(&self.0.join("renew"), b"")
    }

    /// Whether that was asked for, once.
    pub(super) fn take_renewal_request(&self) -> bool {
        fs::remove_file(self.0.join("renew")).is_ok()
    }
}

/// Writes a file so that it is there whole or not at all, even after a power cut.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let parent = path.parent().ok_or(ErrorKind::InvalidInput)?;
    File::open(parent)?.sync_all()
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    write_atomic(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file, if it is there; one that `parse` cannot make sense of is set aside.
pub(super) fn read_or_set_aside<T>(
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
            warn!("{} is corrupt ({why}); moved to {}", path.display(), aside.display());
            Ok(None)
        }
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    read_or_set_aside(path, |bytes| serde_json::from_slice(bytes).map_err(|why| why.to_string()))
}

/// Removes a file, if it is there.
pub(super) fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
