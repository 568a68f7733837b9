//! BPF programs and maps of the agent: loading, attaching, and access to entries. Only this module
//! uses `aya`.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::net::sockopt::socket_cookie;

pub(crate) mod address;
mod btf_offsets;
mod codec;
mod error;
pub(crate) mod inspect;
mod load_retry;
pub(crate) mod packet;
mod route_names;
mod sockmap;

pub(crate) use error::BpfError;
pub(crate) use sockmap::{SockmapEvents, SockmapProgram};

/// Mount point of bpffs.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Returns the folder of an instance's pins.
pub(crate) fn pin_dir(instance: &str) -> PathBuf {
    Path::new(BPFFS).join("snisplit").join(instance)
}

/// Whether a bpffs is mounted at [`BPFFS`].
pub(crate) fn is_bpffs_mounted() -> bool {
    /// linux/magic.h
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    statfs(BPFFS).is_ok_and(|mounted| mounted.f_type as u64 == BPF_FS_MAGIC)
}

/// Returns the cookie of a socket (`SO_COOKIE`), which identifies it to the programs.
///
/// # Errors
/// Fails if getsockopt(2) does.
pub(crate) fn cookie(socket: impl AsFd) -> Result<u64, BpfError> {
    Ok(socket_cookie(socket).map_err(io::Error::from)?)
}
