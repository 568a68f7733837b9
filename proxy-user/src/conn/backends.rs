//! What is known of back ends: their connections and whether they answer. Survives a reload.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snisplit_common::balance::{Candidate, rank_candidates};
use snisplit_common::health::{BackendHealth, Transition};
use tracing::{info, warn};

use crate::config::{Backend, Config, Route};
use crate::observe::Metrics;
use crate::observe::metrics;

/// All back ends that a configuration names, by the address that it gives.
#[derive(Debug)]
pub(crate) struct Backends {
    known: Mutex<HashMap<String, Arc<Known>>>,
    metrics: Metrics,
    begun: Instant,
}

#[derive(Debug, Default)]
struct Known {
    health: Mutex<BackendHealth>,
    connections: AtomicUsize,
}

/// A back end to dial.
pub(super) struct Choice<'r> {
    pub(super) backend: &'r Backend,
    known: Arc<Known>,
}

/// A connection to a back end, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Connected(Arc<Known>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Backends {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { known: Mutex::default(), metrics, begun: Instant::now() }
    }

    /// Forgets what the configuration does not name; all else keeps its state.
    pub(crate) fn keep(&self, config: &Config) {
        let named: Vec<String> = config
            .all_routes()
            .flat_map(|route| &route.backends)
            .map(|backend| backend.name.clone())
            .collect();
        let mut known = self.lock();
        known.retain(|key, _| named.contains(key));
        self.metrics.backend_up.clear();
        for key in named {
            let health = known.entry(key.clone()).or_default().health();
            self.show(&key, health.is_up(self.now()));
        }
    }

    /// The back ends of a route, the one to dial first in front.
    pub(super) fn order<'r>(&self, route: &'r Route, client: IpAddr) -> Vec<Choice<'r>> {
        let now = self.now();
        let known: Vec<Arc<Known>> =
            route.backends.iter().map(|backend| self.of(&backend.name)).collect();
        let both = known.iter().zip(&route.backends);
        let candidates: Vec<Candidate<'_>> = both
            .map(|(known, backend)| {
                let health = *known.health();
                Candidate {
                    key: &backend.name,
                    weight: f64::from(backend.weight) * health.weight_factor(route.slow_start, now),
                    active_connections: known.connections.load(Ordering::Relaxed),
                    is_up: health.is_up(now),
                }
            })
            .collect();
        let order = rank_candidates(route.balance, route.take_turn(), client, &candidates);
        let choice = |index: usize| Choice {
            backend: &route.backends[index],
            known: Arc::clone(&known[index]),
        };
        order.into_iter().map(choice).collect()
    }

    /// Counts a connection that was made.
    pub(super) fn connect(&self, choice: &Choice<'_>) -> Connected {
        choice.known.connections.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(&choice.known))
    }

    /// A connection was tried.
    pub(super) fn dialled(&self, choice: &Choice<'_>, answered: bool) {
        let change = choice.known.health().record_connect(answered, self.now());
        if change.is_some() {
            self.tell(&choice.backend.name, change);
        }
    }

    /// A check was made.
    pub(crate) fn checked(&self, backend: &Backend, answered: bool, rise_fall: (u32, u32)) {
        let change = self.of(&backend.name).health().record_check(answered, rise_fall, self.now());
        self.tell(&backend.name, change);
    }

    fn tell(&self, backend: &str, change: Option<Transition>) {
        match change {
            None => return,
            Some(Transition::Up) => info!(backend, "back end is up"),
            Some(Transition::Down) => warn!(backend, "back end is down: its checks fail"),
            Some(Transition::Eject(time)) => {
                warn!(backend, ?time, "back end does not answer; others go first");
            }
        }
        self.show(backend, change == Some(Transition::Up));
    }

    fn show(&self, backend: &str, is_up: bool) {
        let labels = metrics::Dial { backend: backend.to_owned() };
        self.metrics.backend_up.get_or_create(&labels).set(is_up.into());
    }

    fn of(&self, key: &str) -> Arc<Known> {
        let mut known = self.lock();
        if let Some(known) = known.get(key) {
            return Arc::clone(known);
        }
        Arc::clone(known.entry(key.to_owned()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Known>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Known {
    fn health(&self) -> MutexGuard<'_, BackendHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
