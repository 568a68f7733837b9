//! HTTPS client for the CA: it bounds the time of each request, trusts the configured root
//! certificates and records `Retry-After`.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

/// Longest time from a request to its response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// `Retry-After` of the last error response. Clones share one value.
#[derive(Clone, Debug, Default)]
pub(super) struct RetryAfter(Arc<Mutex<Option<SystemTime>>>);

impl RetryAfter {
    /// Returns the value and clears it.
    pub(super) fn consume(&self) -> Option<SystemTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, at: Option<SystemTime>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// HTTP client that instant-acme uses.
pub(super) struct AcmeHttpClient {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    retry_after: RetryAfter,
}

impl AcmeHttpClient {
    /// # Errors
    ///
    /// `ca_file`, or without one the system's root certificates, cannot be read.
    pub(super) fn new(ca_file: Option<&Path>, retry_after: RetryAfter) -> Result<Self> {
        let builder = match ca_file {
            Some(path) => {
                HttpsConnectorBuilder::new().with_tls_config(tls_config_with_roots(path)?)
            }
            None => HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(default_provider())
                .context("the system has no root certificates (package ca-certificates)")?,
        };
        let connector = builder.https_only().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), retry_after })
    }
}

fn tls_config_with_roots(path: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let context = || format!("acme.ca_file: {}", path.display());
    for certificate in CertificateDer::pem_file_iter(path).with_context(context)? {
        roots.add(certificate.with_context(context)?).with_context(context)?;
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

impl HttpClient for AcmeHttpClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (pending, retry_after) = (self.client.request(request), self.retry_after.clone());
        Box::pin(async move {
            let result = timeout(REQUEST_TIMEOUT, pending)
                .await
                .map_err(|elapsed| Error::Other(elapsed.into()))?;
            let response = result.map_err(|error| Error::Other(error.into()))?;
            let is_error =
                response.status().is_client_error() || response.status().is_server_error();
            if is_error {
                retry_after.set(parse_retry_after(response.headers()));
            }
            Ok(BytesResponse::from(response))
        })
    }
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
fn parse_retry_after(headers: &HeaderMap) -> Option<SystemTime> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(SystemTime::now() + Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}
