//! Certificates and keys in PEM files.

use std::path::Path;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use snisplit_common::server_name::Pattern;

use super::info::CertInfo;

/// Reads a chain and its key; they must belong together.
pub(crate) fn load(cert: &Path, key: &Path) -> Result<(CertifiedKey, CertInfo), String> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let chain = read(cert)?;
    let secret = read(key)?;
    parse_pair(&chain, &secret)
        .map_err(|why| format!("{} and {}: {why}", cert.display(), key.display()))
}

/// The same from what the files hold.
pub(crate) fn parse_pair(chain: &[u8], key: &[u8]) -> Result<(CertifiedKey, CertInfo), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|why| format!("the certificate is no PEM: {why}"))?;
    if chain.is_empty() {
        return Err("there is no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|why| format!("the key: {why}"))?;
    let info = CertInfo::from_leaf(&chain[0])?;
    let pair = CertifiedKey::from_der(chain, key, &default_provider());
    Ok((pair.map_err(|why| why.to_string())?, info))
}

/// Whether the files are good for all the names, and if not, why.
pub(crate) fn verify_names(cert: &Path, key: &Path, names: &[Pattern]) -> Result<(), String> {
    let (_, info) = load(cert, key)?;
    match names.iter().find(|name| !info.covers_pattern(name)) {
        Some(name) => {
            Err(format!("{} is for {}, not for \"{name}\"", cert.display(), info.names.join(", ")))
        }
        None => Ok(()),
    }
}
