//! The parts of the agent that a reload updates.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio_util::task::TaskTracker;

use super::certificates::CertificateSources;
use super::listeners::Listeners;
use crate::session::Shared;
use crate::upstream::health_check::HealthChecker;

/// Parts that the start and each reload apply the configuration to.
pub(super) struct Services {
    pub(super) listeners: Listeners,
    pub(super) certificates: CertificateSources,
    pub(super) health_checker: HealthChecker,
}

impl Services {
    /// # Errors
    ///
    /// A thread cannot be started.
    pub(super) fn new(shared: &Arc<Shared>, tasks: &TaskTracker) -> Result<Self> {
        let listeners = Listeners::new(Arc::clone(shared), tasks.clone());
        Ok(Self {
            listeners: listeners.context("cannot start a thread")?,
            certificates: CertificateSources::new(shared.cert_store.clone()),
            health_checker: HealthChecker::new(
                shared.backends.clone(),
                shared.resolver.clone(),
                shared.config.load().limits.clone(),
            ),
        })
    }
}
