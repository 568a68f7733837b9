//! Certificate chains and private keys in PEM.

use std::io;
use std::path::{Path, PathBuf};

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use snisplit_common::server_name::Pattern;
use thiserror::Error;

use super::info::{CertInfo, CertInfoError};

/// Why a chain and a key cannot be used.
#[derive(Debug, Error)]
pub(crate) enum PairError {
    #[error("the certificate is no PEM: {0}")]
    Certificate(#[source] pem::Error),
    #[error("there is no certificate")]
    NoCertificate,
    #[error("the key: {0}")]
    Key(#[source] pem::Error),
    #[error(transparent)]
    Info(#[from] CertInfoError),
    /// The key does not match the certificate, or its algorithm is not supported.
    #[error(transparent)]
    Pair(#[from] rustls::Error),
}

/// Why a certificate file and a key file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{} and {}: {error}", cert.display(), key.display())]
    Pair { cert: PathBuf, key: PathBuf, error: PairError },
}

/// Reads a certificate chain and its private key from two files.
///
/// # Errors
///
/// A file cannot be read, or [`parse_pair`] fails.
pub(crate) fn load(cert: &Path, key: &Path) -> Result<(CertifiedKey, CertInfo), LoadError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })
    };
    let chain = read(cert)?;
    let secret = read(key)?;
    parse_pair(&chain, &secret).map_err(|error| LoadError::Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
        error,
    })
}

/// Parses a certificate chain and its private key.
///
/// # Errors
///
/// One of the two is malformed, or they do not belong together.
pub(crate) fn parse_pair(chain: &[u8], key: &[u8]) -> Result<(CertifiedKey, CertInfo), PairError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(PairError::Certificate)?;
    let leaf = chain.first().ok_or(PairError::NoCertificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(PairError::Key)?;
    let info = CertInfo::from_leaf(leaf)?;
    Ok((CertifiedKey::from_der(chain, key, &default_provider())?, info))
}

/// Verifies that a certificate file and a key file can be used for all of these names.
///
/// # Errors
///
/// Text of a diagnostic: why [`load`] fails, or which name the certificate does not cover.
pub(crate) fn verify_names(cert: &Path, key: &Path, names: &[Pattern]) -> Result<(), String> {
    let (_, info) = load(cert, key).map_err(|error| error.to_string())?;
    match names.iter().find(|name| !info.covers_pattern(name)) {
        Some(name) => {
            Err(format!("{} is for {}, not for \"{name}\"", cert.display(), info.names.join(", ")))
        }
        None => Ok(()),
    }
}
