//! The fields of a certificate that the agent uses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use snisplit_common::server_name::{Pattern, ServerName};
use thiserror::Error;
use x509_parser::asn1_rs;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

/// Names, issuer and validity of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertInfo {
    /// DNS names of the subject alternative name extension, in lower case; wildcards as `*.a.test`.
    pub(crate) names: Vec<String>,
    pub(crate) issuer: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

/// Why a certificate cannot be parsed.
#[derive(Debug, Error)]
pub(crate) enum CertInfoError {
    #[error(transparent)]
    Certificate(#[from] asn1_rs::Err<X509Error>),
    #[error(transparent)]
    Extension(#[from] X509Error),
}

impl CertInfo {
    /// Parses the first certificate of a chain.
    ///
    /// # Errors
    ///
    /// The certificate or its subject alternative name extension is malformed.
    pub(crate) fn from_leaf(leaf: &CertificateDer<'_>) -> Result<Self, CertInfoError> {
        let (_, parsed) = parse_x509_certificate(leaf)?;
        let extension = parsed.subject_alternative_name()?;
        let names = extension.iter().flat_map(|extension| &extension.value.general_names);
        let mut dns_names = Vec::new();
        for name in names {
            if let GeneralName::DNSName(name) = name {
                dns_names.push(name.to_ascii_lowercase());
            }
        }
        Ok(Self {
            names: dns_names,
            issuer: parsed.issuer().to_string(),
            not_before: to_system_time(parsed.validity().not_before),
            not_after: to_system_time(parsed.validity().not_after),
        })
    }

    /// Returns whether the certificate is valid for a name (RFC 6125 §6.4).
    pub(crate) fn covers(&self, name: &ServerName) -> bool {
        let is_wildcard_match = |text: &String| {
            text.strip_prefix("*.").is_some_and(|suffix| name.parent() == Some(suffix))
        };
        self.names.iter().any(|text| text == name.as_str() || is_wildcard_match(text))
    }

    /// Returns whether the certificate is valid for all names of a pattern.
    pub(crate) fn covers_pattern(&self, pattern: &Pattern) -> bool {
        match pattern {
            Pattern::Exact(name) => self.covers(name),
            Pattern::Wildcard(_) | Pattern::Default => self.names.contains(&pattern.to_string()),
        }
    }
}

fn to_system_time(time: ASN1Time) -> SystemTime {
    match u64::try_from(time.timestamp()) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
        Err(_) => UNIX_EPOCH,
    }
}
