//! Balancing: connections and health of the back ends, which a reload keeps.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snisplit_common::balance::{Candidate, rank_candidates};
use snisplit_common::health::{BackendHealth, Transition};
use tracing::{info, warn};

use crate::config::{Backend, Config, Route};
use crate::telemetry::Metrics;
use crate::telemetry::metrics;

/// State of all back ends of the configuration. A clone shares it.
#[derive(Clone, Debug)]
pub(crate) struct Backends(Arc<BackendsState>);

#[derive(Debug)]
struct BackendsState {
    /// By the address as written in the configuration.
    states: Mutex<HashMap<String, Arc<BackendState>>>,
    /// Number of connections of each route, by its first name, for round robin.
    rounds: Mutex<HashMap<String, usize>>,
    metrics: Metrics,
    started_at: Instant,
}

#[derive(Debug, Default)]
struct BackendState {
    health: Mutex<BackendHealth>,
    connections: AtomicUsize,
}

/// A back end to connect to.
pub(crate) struct SelectedBackend<'r> {
    pub(crate) backend: &'r Backend,
    state: Arc<BackendState>,
}

/// A connection that counts for its back end until the guard is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionGuard(Arc<BackendState>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Backends {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self(Arc::new(BackendsState {
            states: Mutex::default(),
            rounds: Mutex::default(),
            metrics,
            started_at: Instant::now(),
        }))
    }

    /// Drops the state of back ends and routes that the configuration does not have.
    pub(crate) fn retain_configured(&self, config: &Config) {
        let configured: Vec<String> = config
            .all_routes()
            .flat_map(|route| &route.backends)
            .map(|backend| backend.name.clone())
            .collect();
        let labels: HashSet<&String> = config.all_routes().map(|route| &route.label).collect();
        self.lock_rounds().retain(|label, _| labels.contains(label));
        let mut states = self.lock();
        states.retain(|key, _| configured.contains(key));
        self.0.metrics.backend_up.clear();
        for key in configured {
            let health = states.entry(key.clone()).or_default().health();
            self.update_gauge(&key, health.is_up(self.now()));
        }
    }

    /// Returns the back ends of a route in the order to try them.
    pub(crate) fn select_order<'r>(
        &self,
        route: &'r Route,
        client: IpAddr,
    ) -> Vec<SelectedBackend<'r>> {
        let now = self.now();
        let states: Vec<Arc<BackendState>> =
            route.backends.iter().map(|backend| self.entry(&backend.name)).collect();
        let states_and_backends = states.iter().zip(&route.backends);
        let candidates: Vec<Candidate<'_>> = states_and_backends
            .map(|(state, backend)| {
                let health = *state.health();
                Candidate {
                    key: &backend.name,
                    weight: f64::from(backend.weight) * health.weight_factor(route.slow_start, now),
                    active_connections: state.connections.load(Ordering::Relaxed),
                    is_up: health.is_up(now),
                }
            })
            .collect();
        let indices = rank_candidates(route.balance, self.next_round(route), client, &candidates);
        let select = |index: usize| SelectedBackend {
            backend: &route.backends[index],
            state: Arc::clone(&states[index]),
        };
        indices.into_iter().map(select).collect()
    }

    /// Counts a connection to a back end.
    pub(crate) fn track_connection(&self, selected: &SelectedBackend<'_>) -> ConnectionGuard {
        selected.state.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard(Arc::clone(&selected.state))
    }

    /// Records the result of a connect, for ejection.
    pub(crate) fn record_connect(&self, selected: &SelectedBackend<'_>, succeeded: bool) {
        let transition = selected.state.health().record_connect(succeeded, self.now());
        if transition.is_some() {
            self.log_transition(&selected.backend.name, transition);
        }
    }

    /// Records the result of a health check.
    pub(crate) fn record_check(&self, backend: &Backend, succeeded: bool, rise: u32, fall: u32) {
        let state = self.entry(&backend.name);
        let transition = state.health().record_check(succeeded, rise, fall, self.now());
        self.log_transition(&backend.name, transition);
    }

    fn log_transition(&self, backend: &str, transition: Option<Transition>) {
        match transition {
            None => return,
            Some(Transition::Up) => info!(backend, "back end is up"),
            Some(Transition::Down) => warn!(backend, "back end is down: health checks fail"),
            Some(Transition::Eject(time)) => {
                warn!(backend, ejection_time = ?time, "back end ejected: connections fail");
            }
        }
        self.update_gauge(backend, transition == Some(Transition::Up));
    }

    fn update_gauge(&self, backend: &str, is_up: bool) {
        let labels = metrics::BackendLabels { backend: backend.to_owned() };
        self.0.metrics.backend_up.get_or_create(&labels).set(is_up.into());
    }

    fn entry(&self, key: &str) -> Arc<BackendState> {
        let mut states = self.lock();
        if let Some(state) = states.get(key) {
            return Arc::clone(state);
        }
        Arc::clone(states.entry(key.to_owned()).or_default())
    }

    /// Returns the number of this connection on its route.
    fn next_round(&self, route: &Route) -> usize {
        if route.backends.len() == 1 {
            return 0;
        }
        let mut rounds = self.lock_rounds();
        let round = match rounds.get_mut(&route.label) {
            Some(round) => round,
            None => rounds.entry(route.label.clone()).or_default(),
        };
        let number = *round;
        *round = round.wrapping_add(1);
        number
    }

    fn lock_rounds(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<BackendState>>> {
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.started_at.elapsed()
    }
}

impl BackendState {
    fn health(&self) -> MutexGuard<'_, BackendHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
