//! The certificate that answers a TLS-ALPN-01 validation (RFC 8737 §3).

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use snisplit_common::server_name::ServerName;

/// Builds the TLS configuration of a validation.
///
/// The certificate is self-signed, its only name is `name`, and a critical `acmeIdentifier` extension
/// holds the SHA-256 digest of the key authorization. `acme-tls/1` is the only ALPN protocol.
///
/// # Errors
///
/// The certificate cannot be generated or signed.
pub(crate) fn tls_alpn01_config(name: &ServerName, digest: &[u8]) -> Result<ServerConfig> {
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key).context("sign the challenge's certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = default_provider();
    let key = provider.key_provider.load_private_key(key)?;
    // `with_single_cert` would parse the certificate to compare the keys, and reject the critical
    // acmeIdentifier extension as unknown.
    let pair = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    // A CA never resumes the session of a validation.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
