//! The daemon of `snisplit run`: it starts all parts of the agent, reloads them, and stops them on a
//! signal.
//!
//! No other module imports this one.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use snisplit_common::limits::max_connections_for_nofile;
use tokio::runtime::Handle;
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::certs::CertStore;
use crate::config::Config;
use crate::downstream::admission::ConnectionLimiter;
use crate::engine::{EngineChoice, EngineSelector};
use crate::net;
use crate::session::Shared;
use crate::session::adopt;
use crate::telemetry::record::Telemetry;
use crate::telemetry::{AccessLog, AcmeLog, Metrics};
use crate::upstream::loop_detector::LoopDetector;
use crate::upstream::resolve::Resolver;
use crate::upstream::select::Backends;

mod admin;
mod certificates;
mod config_source;
mod config_watcher;
mod engines;
mod listeners;
mod packet_engine;
mod pin_dir;
mod reload;
mod services;

pub use config_source::ConfigSource;
use services::Services;

/// Serves until SIGTERM or SIGINT, then waits up to `drain_timeout` for connections to end; a second
/// signal resets them. SIGHUP reloads the file.
///
/// # Errors
///
/// The configuration is invalid, or a listener, engine, state directory or runtime cannot be set up.
pub fn run(source: &ConfigSource) -> Result<()> {
    let config = source.load()?;
    raise_fd_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(source, config))
}

async fn serve(source: &ConfigSource, config: Config) -> Result<()> {
    let mut signals = Signals::new()?;
    let is_auto = config.engine == EngineChoice::Auto;
    let shared = Arc::new(build_shared(config)?);
    // An engine that the configuration names must work before the first connection. `auto` serves
    // connections while it loads sockmap.
    let mut engine_guard = match is_auto {
        false => Some(engines::load(&shared.config.load_full(), &shared.engine_selector).await?),
        true => None,
    };
    let tasks = TaskTracker::new();
    let mut services = Services::new(&shared, &tasks)?;
    start(&shared, &mut services, &tasks)?;
    engine_guard.iter_mut().for_each(engines::EngineGuard::mark_adopted);
    let mut background = JoinSet::new();
    if is_auto {
        background.spawn(engines::load_in_background(Arc::clone(&shared)));
    }
    let mut watcher = source.watcher();
    let signal_name = loop {
        select! {
            _ = signals.term.recv() => break "SIGTERM",
            _ = signals.int.recv() => break "SIGINT",
            _ = signals.hup.recv() => reload::reload(source, &shared, &mut services, "SIGHUP"),
            () = watcher.changed() => reload::reload(source, &shared, &mut services, "file changed"),
        }
    };
    let drain_timeout = shared.config.load().drain_timeout;
    info!(signal = signal_name, connections = tasks.len(), ?drain_timeout, "stopping");
    services.listeners.stop_accepting().await;
    drain(&tasks, drain_timeout, &mut signals).await;
    shared.abort.cancel();
    tasks.wait().await;
    background.shutdown().await;
    info!("stopped");
    Ok(())
}

fn build_shared(config: Config) -> Result<Shared> {
    let cert_store = CertStore::default();
    let telemetry = open_telemetry(&config, &cert_store)?;
    Ok(Shared {
        engine_selector: EngineSelector::default(),
        limiter: ConnectionLimiter::default(),
        loop_detector: LoopDetector::default(),
        backends: Backends::new(telemetry.metrics.clone()),
        resolver: Resolver::new(telemetry.metrics.clone()),
        cert_store,
        telemetry: Arc::new(telemetry),
        acme_log: AcmeLog::default(),
        main_runtime: Handle::current(),
        abort: CancellationToken::new(),
        config: ArcSwap::from_pointee(config),
    })
}

fn start(shared: &Arc<Shared>, services: &mut Services, tasks: &TaskTracker) -> Result<()> {
    let config = shared.config.load_full();
    shared.backends.retain_configured(&config);
    shared.resolver.set_nameservers(&config.nameservers);
    services.certificates.apply(&config, &config)?;
    let prepared = services.listeners.prepare(&config)?;
    // No later step can fail. Flows of the previous agent must survive a start that fails.
    adopt::adopt_flows(shared, tasks);
    prepared.commit();
    services.health_checker.apply(&config);
    reload::warn_if_bypass_always(&config);
    net::warn_if_missing(&config);
    info!(engine = %config.engine, routes = config.routes.iter().len(), "ready");
    Ok(())
}

/// Opens the access log and the admin port.
fn open_telemetry(config: &Config, cert_store: &CertStore) -> Result<Telemetry> {
    let metrics = Metrics::default();
    if let Some(address) = config.admin {
        // Listeners for TLS reset a connection on close (SO_LINGER). This one must not: the client has
        // to receive the whole response.
        let socket = TcpListener::bind(address)
            .with_context(|| format!("admin.address: cannot listen on {address}"))?;
        socket.set_nonblocking(true)?;
        info!(address = %socket.local_addr()?, "admin port listening");
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let cert_store = cert_store.clone();
        tokio::spawn(admin::serve(socket, metrics.clone(), move || cert_store.missing()));
    }
    let open = |path: &PathBuf| {
        let log = AccessLog::open(path, config.access_log_format);
        log.with_context(|| format!("access_log: cannot append to {}", path.display()))
    };
    let access_log = config.access_log.as_ref().map(open).transpose()?.map(Arc::new);
    Ok(Telemetry { metrics, access_log })
}

async fn drain(tasks: &TaskTracker, limit: Duration, signals: &mut Signals) {
    tasks.close();
    select! {
        waited = timeout(limit, tasks.wait()) => {
            if waited.is_err() {
                info!(reset_connections = tasks.len(), "drain timeout expired");
            }
        }
        signal_name = signals.recv_stop() => {
            info!(signal = signal_name, reset_connections = tasks.len(), "second signal received");
        }
    }
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn recv_stop(&mut self) -> &'static str {
        select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Raises the limit of open files as far as the process may: the usual soft limit is 1024, and each
/// connection needs several descriptors.
fn raise_fd_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let nr_open = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    // Only root may raise the hard limit. Every process may raise its soft limit up to the hard limit.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: nr_open, maximum: nr_open })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the open file limit");
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        info!(limit, max_connections = max_connections_for_nofile(limit), "open file limit");
    }
}
