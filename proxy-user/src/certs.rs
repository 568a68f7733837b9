//! Certificates that the agent serves, and its answers to challenges while an order is pending.
//!
//! `acme` and the file watcher write to the [`CertStore`]; connections read from it. The next
//! connection gets a new certificate as soon as it is installed.

pub(crate) mod challenge;
pub(crate) mod file_watcher;
pub(crate) mod info;
pub(crate) mod pem;
mod store;

pub(crate) use store::{CertStore, ChallengeGuard};
