//! Builds everything, then waits for the signal to take it down. Nothing imports this.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use snisplit_common::decide::AcmeBypass;
use snisplit_common::limits::connections_within;
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::{Config, Listener};
use crate::conn::{Shared, accept};
use crate::engine::Ladder;
use crate::observe::record::Observers;
use crate::observe::{AccessLog, AcmeLog, Metrics, admin};

/// Serves until SIGTERM or SIGINT, then lets running connections end (`drain`); a second signal
/// cuts them.
pub fn run(config: Config) -> Result<()> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    let mut signals = Signals::new()?;
    let observers = observers(&config)?;
    let shared = Arc::new(Shared {
        acme_bypass: config.acme_bypass,
        limits: config.limits,
        ladder: Ladder::new(config.engine),
        observers,
        acme_log: AcmeLog::default(),
        cut: CancellationToken::new(),
        routes: config.routes,
    });
    let tasks = TaskTracker::new();
    let mut accepting = JoinSet::new();
    for listener in &config.listeners {
        let socket = accept::listen(listener.address, is_v4_taken(listener, &config.listeners))
            .with_context(|| format!("listener.address: cannot listen on {}", listener.address))?;
        let address = socket.local_addr()?;
        info!(%address, "listening");
        let listener = Arc::new(Listener { address, ..listener.clone() });
        accepting.spawn(accept::run(socket, listener, Arc::clone(&shared), tasks.clone()));
    }
    warn_of_bypass(config.acme_bypass);
    info!(engine = %config.engine, routes = shared.routes.iter().len(), "ready");

    let by = signals.next().await;
    info!(signal = by, running = tasks.len(), drain = ?config.drain, "stopping");
    accepting.shutdown().await;
    drain(&tasks, config.drain, &mut signals).await;
    shared.cut.cancel();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}

/// Opens the access log and the admin port.
fn observers(config: &Config) -> Result<Observers> {
    let metrics = Metrics::default();
    if let Some(address) = config.admin {
        let socket = accept::listen(address, false)
            .with_context(|| format!("admin.address: cannot listen on {address}"))?;
        info!(address = %socket.local_addr()?, "admin");
        tokio::spawn(admin::serve(socket, metrics.clone()));
    }
    let open = |path: &PathBuf| {
        let log = AccessLog::open(path);
        log.with_context(|| format!("access_log: cannot append to {}", path.display()))
    };
    let access_log = config.access_log.as_ref().map(open).transpose()?.map(Arc::new);
    Ok(Observers { metrics, access_log })
}

async fn drain(tasks: &TaskTracker, limit: Duration, signals: &mut Signals) {
    tasks.close();
    select! {
        waited = timeout(limit, tasks.wait()) => {
            if waited.is_err() {
                info!(cut = tasks.len(), "drain time is over");
            }
        }
        by = signals.next() => info!(signal = by, cut = tasks.len(), "told twice"),
    }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Whether `0.0.0.0` of the same port is listened on too, so that `[::]` must leave IPv4 alone.
fn is_v4_taken(listener: &Listener, all: &[Listener]) -> bool {
    let port = listener.address.port();
    all.iter().any(|other| other.address.is_ipv4() && other.address.port() == port)
}

fn warn_of_bypass(bypass: AcmeBypass) {
    if bypass == AcmeBypass::Always {
        warn!(
            "acme_bypass = \"always\": the back end of a catch-all route receives the ACME \
             validations of every name that no other route claims, and can get certificates for \
             them"
        );
    }
}

/// Each connection needs descriptors; the soft limit of 1024 is a habit, not a wish.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // The hard limit moves for root only; the soft one up to it for everybody.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        info!(limit, connections = connections_within(limit), "open files");
    }
}
