//! The state directory (`acme.state_dir`): account, pending orders and certificates.
//!
//! ```text
//! lock                                        flock(2), held while an agent runs
//! HOST/account.json                           account at the CA with this host
//! HOST/certificates/NAME/certificate.pem      key and chain, in one file so that they match
//! HOST/certificates/NAME/order.json           pending order, with the key of its certificate
//! HOST/certificates/NAME/status.json          next order and failures, for `snisplit certs`
//! HOST/certificates/NAME/renew                request of `snisplit certs renew`
//! ```
//!
//! Directories have mode 0700, files 0600. The agent writes a temporary file, syncs it and renames it,
//! so a crash leaves either the old or the new content. A file that cannot be parsed is renamed.

use std::fmt::Display;
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
use crate::certs::pem::{self, PairError};

/// Layout that this agent reads and writes. A state directory with another layout is an error.
const STATE_LAYOUT: &str = "snisplit state, layout 1\n";

/// State of one CA, locked for this agent. Clones share the lock.
#[derive(Clone, Debug)]
pub(crate) struct StateStore {
    state_dir: PathBuf,
    ca_dir: PathBuf,
    lock: Arc<File>,
}

/// Directory with the files of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct CertificateDir(PathBuf);

/// Content of a certificate directory.
pub(crate) struct StoredCertificate {
    /// The certificate, or why it cannot be parsed; `None` before the first order has ended.
    pub(crate) info: Option<Result<CertInfo, PairError>>,
    pub(crate) status: Option<CertificateStatus>,
}

impl StateStore {
    /// Opens and locks a state directory. The lock of `previous` stays held if the directory is the
    /// same.
    ///
    /// # Errors
    ///
    /// The directory cannot be created, another agent holds its lock, or it has another layout.
    pub(super) fn open(state_dir: &Path, directory: &str, previous: Option<&Self>) -> Result<Self> {
        let lock = match previous.filter(|open| open.state_dir == state_dir) {
            Some(open) => Arc::clone(&open.lock),
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

    pub(super) fn account_path(&self) -> PathBuf {
        self.ca_dir.join("account.json")
    }

    /// Creates the directory of a certificate. `label` is the first name of its `[[terminate]]` entry.
    ///
    /// # Errors
    ///
    /// The directory cannot be created.
    pub(super) fn certificate_dir(&self, label: &str) -> Result<CertificateDir> {
        let dir = certificate_dir_in(&self.ca_dir, label);
        create_dir(&dir.0)?;
        Ok(dir)
    }
}

/// Returns the directory of a certificate for reading, without a lock: an agent may be running.
pub(crate) fn open_readonly(state_dir: &Path, directory: &str, label: &str) -> CertificateDir {
    certificate_dir_in(&state_dir.join(ca_dir_name(directory)), label)
}

fn certificate_dir_in(ca_dir: &Path, label: &str) -> CertificateDir {
    CertificateDir(ca_dir.join("certificates").join(label.replace('*', "_")))
}

/// Returns host and port of the ACME directory's URL, as the name of a directory.
fn ca_dir_name(directory: &str) -> String {
    let rest = directory.strip_prefix("https://").unwrap_or(directory);
    rest.split('/').next().unwrap_or_default().replace(':', "_")
}

fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

impl CertificateDir {
    /// Reads certificate and status without renaming what cannot be parsed.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or `status.json` cannot be parsed.
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

    /// Requests an order at the agent's next poll.
    ///
    /// # Errors
    ///
    /// The request cannot be written, for example because the directory does not exist.
    pub(crate) fn request_renewal(&self) -> io::Result<()> {
        write_atomic(&self.0.join("renew"), b"")
    }

    /// Removes a request to renew, and returns whether there was one.
    pub(super) fn take_renewal_request(&self) -> bool {
        fs::remove_file(self.0.join("renew")).is_ok()
    }
}

/// Writes a file so that it has the old or the new content, even after a power failure.
///
/// # Errors
///
/// The error of a file operation, among them fsync(2).
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

/// Writes a file as JSON, by [`write_atomic`].
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    write_atomic(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads and parses a file. If `parse` fails, the file is renamed. `None` if no file is left.
///
/// # Errors
///
/// The file cannot be read or renamed.
pub(super) fn read_or_rename_corrupt<T, E: Display>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    match parse(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let aside = path.with_extension(format!("corrupt-{}", since_1970.as_secs()));
            fs::rename(path, &aside)?;
            warn!("{} is corrupt ({error}); moved to {}", path.display(), aside.display());
            Ok(None)
        }
    }
}

/// Reads a JSON file, by [`read_or_rename_corrupt`].
///
/// # Errors
///
/// The file cannot be read or renamed.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    read_or_rename_corrupt(path, |bytes| serde_json::from_slice(bytes))
}

/// Removes a file if it exists.
///
/// # Errors
///
/// The error of unlink(2), except that the file does not exist.
pub(super) fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
