//! Names of back ends to addresses, kept for as long as their DNS records say.
//!
//! What a name server once answered is used for longer than that only while no name server answers:
//! a dead or slow resolver must neither take working back ends down nor hold connections up.

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
use crate::observe::Metrics;
use crate::observe::metrics;

/// How long to wait for a name server where a former answer would do.
const GRACE: Duration = Duration::from_millis(200);

/// Resolves and remembers; cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Resolver(Arc<State>);

#[derive(Debug)]
struct State {
    /// `None` if /etc/resolv.conf cannot be read.
    current: ArcSwapOption<TokioResolver>,
    memory: Mutex<Memory>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Memory {
    last_known: HashMap<String, Vec<IpAddr>>,
    /// Names that a name server is being asked for, and since when.
    asking: HashMap<String, Instant>,
}

impl Resolver {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let current = ArcSwapOption::empty();
        Self(Arc::new(State { current, memory: Mutex::default(), metrics }))
    }

    /// Asks these servers from now on, with an empty cache; without any, those of
    /// /etc/resolv.conf, which is read anew.
    pub(crate) fn ask(&self, servers: &[SocketAddr]) {
        match dns::resolver(servers) {
            Ok(resolver) => self.0.current.store(Some(Arc::new(resolver))),
            Err(error) => {
                warn!(%error, "names of back ends cannot be resolved; set nameservers");
                self.0.current.store(None);
            }
        }
    }

    /// The addresses of a host, in the order that the name server gives.
    pub(super) async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let ips = self.ips(host).await?;
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn ips(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let (known, asked) = {
            let memory = self.0.memory();
            (memory.last_known.get(host).cloned(), memory.asking.get(host).copied())
        };
        let Some(known) = known else { return self.0.lookup(host).await };
        match asked {
            Some(since) if since.elapsed() < GRACE => return Ok(known),
            Some(_) => return Ok(self.0.stale(host, known)),
            None => {}
        }
        // Goes on when nobody waits any more: the next connection has its answer.
        let (state, name) = (Arc::clone(&self.0), host.to_owned());
        let asked = tokio::spawn(async move { state.lookup(&name).await });
        match timeout(GRACE, asked).await {
            Ok(Ok(Ok(ips))) => Ok(ips),
            Ok(Ok(Err(gone))) if gone.kind() == io::ErrorKind::NotFound => Err(gone),
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Ok(self.0.stale(host, known)),
        }
    }
}

impl State {
    /// Asks and remembers. `NotFound` is a name server's word that there is nothing.
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.memory().asking.insert(host.to_owned(), Instant::now());
        let found = match self.current.load_full() {
            Some(resolver) => resolver.lookup_ip(host).await.map_err(|error| {
                let says_no = error.is_no_records_found();
                let kind = if says_no { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
                io::Error::new(kind, format!("{host}: {error}"))
            }),
            None => Err(io::Error::other("no name server is known")),
        };
        let found = found.map(|answer| answer.iter().collect::<Vec<IpAddr>>());
        let mut memory = self.memory();
        memory.asking.remove(host);
        match &found {
            Ok(ips) => _ = memory.last_known.insert(host.to_owned(), ips.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                memory.last_known.remove(host);
            }
            Err(error) => debug!(host, %error, "no name server answers"),
        }
        found
    }

    fn stale(&self, host: &str, known: Vec<IpAddr>) -> Vec<IpAddr> {
        self.metrics.dns_stale.get_or_create(&metrics::Name { name: host.to_owned() }).inc();
        known
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
