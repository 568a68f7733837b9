//! Addresses of back ends with a host name, cached for the TTL of their DNS records.
//!
//! While no name server answers, connections use the last answer beyond its TTL: a stale answer (RFC 8767).
//! So a failed or slow name server neither takes back ends down nor delays connections. An answer that
//! the name has no address ends this. A stale answer has no maximum age; RFC 8767 §5 suggests 1 to 3 days.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use hickory_resolver::TokioResolver;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::dns;
use crate::telemetry::Metrics;
use crate::telemetry::metrics;

/// Maximum time that a connection waits for a name server if there is a stale answer: the client response
/// timer of RFC 8767 §5. The RFC suggests 1.8 s for a resolver whose clients retry after 2 s. A connection
/// to a back end waits for the answer, so it is shorter here. The lookup continues, and the next connection
/// has its answer. Without a stale answer, only `connect_timeout` bounds the wait.
const STALE_ANSWER_TIMEOUT: Duration = Duration::from_millis(200);

/// Resolver of host names. A clone shares its cache.
#[derive(Clone, Debug)]
pub(crate) struct Resolver(Arc<ResolverState>);

#[derive(Debug)]
struct ResolverState {
    /// `None` if there is no name server: /etc/resolv.conf cannot be read.
    resolver: ArcSwapOption<TokioResolver>,
    cache: Mutex<DnsCache>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct DnsCache {
    /// Last answer for each name, which becomes stale once its TTL has passed.
    last_answers: HashMap<String, Vec<IpAddr>>,
    /// Start of the lookup that runs for a name.
    in_flight: HashMap<String, Instant>,
}

impl Resolver {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let current = ArcSwapOption::empty();
        Self(Arc::new(ResolverState { resolver: current, cache: Mutex::default(), metrics }))
    }

    /// Sets the name servers, and empties the cache of fresh answers. Without servers, reads
    /// /etc/resolv.conf again.
    pub(crate) fn set_nameservers(&self, servers: &[SocketAddr]) {
        match dns::caching_resolver(servers) {
            Ok(resolver) => self.0.resolver.store(Some(Arc::new(resolver))),
            Err(error) => {
                warn!(%error, "cannot resolve host names of back ends; set nameservers");
                self.0.resolver.store(None);
            }
        }
    }

    /// Returns the addresses of a host, in the order of the answer.
    ///
    /// # Errors
    ///
    /// The name has no address, or no name server answers and there is no stale answer.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let ips = self.resolve_ips(host).await?;
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn resolve_ips(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let (cached, in_flight_since) = {
            let cache = self.0.lock_cache();
            (cache.last_answers.get(host).cloned(), cache.in_flight.get(host).copied())
        };
        let Some(cached) = cached else { return self.0.lookup(host).await };
        match in_flight_since {
            Some(since) if since.elapsed() < STALE_ANSWER_TIMEOUT => return Ok(cached),
            Some(_) => return Ok(self.0.serve_stale(host, cached)),
            None => {}
        }
        // A task of its own continues after the timeout, so that the next connection has the answer.
        let (state, name) = (Arc::clone(&self.0), host.to_owned());
        let lookup = tokio::spawn(async move { state.lookup(&name).await });
        match timeout(STALE_ANSWER_TIMEOUT, lookup).await {
            Ok(Ok(Ok(ips))) => Ok(ips),
            Ok(Ok(Err(not_found))) if not_found.kind() == io::ErrorKind::NotFound => Err(not_found),
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Ok(self.0.serve_stale(host, cached)),
        }
    }
}

impl ResolverState {
    /// Looks a name up and keeps the answer.
    ///
    /// # Errors
    ///
    /// `NotFound` if a name server answered that the name has no address. Another kind if none answered.
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.lock_cache().in_flight.insert(host.to_owned(), Instant::now());
        let found = match self.resolver.load_full() {
            Some(resolver) => resolver.lookup_ip(host).await.map_err(|error| {
                let has_no_records = error.is_no_records_found();
                let kind =
                    if has_no_records { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
                io::Error::new(kind, format!("{host}: {error}"))
            }),
            None => Err(io::Error::other("no name server is known")),
        };
        let found = found.map(|answer| answer.iter().collect::<Vec<IpAddr>>());
        let mut cache = self.lock_cache();
        cache.in_flight.remove(host);
        match &found {
            Ok(ips) => _ = cache.last_answers.insert(host.to_owned(), ips.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                cache.last_answers.remove(host);
            }
            Err(error) => debug!(host, %error, "no name server answers"),
        }
        found
    }

    /// Counts the use of a stale answer and returns it.
    fn serve_stale(&self, host: &str, cached: Vec<IpAddr>) -> Vec<IpAddr> {
        self.metrics
            .dns_stale_answers
            .get_or_create(&metrics::HostLabels { host: host.to_owned() })
            .inc();
        cached
    }

    fn lock_cache(&self) -> MutexGuard<'_, DnsCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
