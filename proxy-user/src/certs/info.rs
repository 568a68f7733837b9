//! What a certificate says about itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use snisplit_common::server_name::{Pattern, ServerName};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

/// The facts that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertInfo {
    /// DNS names, as they stand there.
    pub(crate) names: Vec<String>,
    /// Who signed it.
    pub(crate) issuer: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl CertInfo {
    /// Reads the first certificate of a chain.
    pub(crate) fn from_leaf(leaf: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = parse_x509_certificate(leaf).map_err(|why| why.to_string())?;
        let names = parsed.subject_alternative_name().map_err(|why| why.to_string())?;
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
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

    /// Whether it is good for a name, RFC 6125 §6.4.
    pub(crate) fn covers(&self, name: &ServerName) -> bool {
        let by_wildcard = |text: &String| {
            text.strip_prefix("*.").is_some_and(|suffix| name.parent() == Some(suffix))
        };
        self.names.iter().any(|text| text == name.as_str() || by_wildcard(text))
    }

    /// Whether it is good for all names of a pattern.
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
