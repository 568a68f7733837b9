//! What this agent can prove: certificates for the names it terminates, and answers to challenges
//! while an order runs.
//!
//! `acme` and the file watcher put in, connections take out; a certificate that is put in is served
//! to the next connection.

pub(crate) mod challenge;
pub(crate) mod file_watcher;
pub(crate) mod info;
pub(crate) mod pem;
mod store;

pub(crate) use store::{CertStore, ChallengeGuard};
