//! The certificates that the agent orders for a configuration.

use crate::config::Challenge;
use crate::config::Terminate;
use crate::config::terminate::CertificateSource;

/// A certificate to order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CertificateSpec {
    /// First name of the `[[terminate]]` entry.
    pub(super) label: String,
    pub(super) names: Vec<String>,
    pub(super) challenge: Challenge,
}

impl CertificateSpec {
    /// Returns `None` for an entry whose certificate comes from files.
    pub(super) fn from_terminate(terminate: &Terminate) -> Option<Self> {
        let CertificateSource::Acme(challenge) = terminate.certificate else { return None };
        Some(Self {
            label: terminate.route.label.clone(),
            names: terminate.route.names.iter().map(ToString::to_string).collect(),
            challenge,
        })
    }
}
