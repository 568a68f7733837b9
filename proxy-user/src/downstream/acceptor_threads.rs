//! Threads that serve the beginnings of connections: each accepts on a socket of its own, and what it has
//! accepted stays with it as long as it is young ([`Course::Handover`](crate::engine::CarryResult)).
//!
//! A short connection is over before another core could help, and takes a tenth less of one core than where
//! any thread may take it up.

use std::future::pending;
use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};

/// As many as the runtime that this is called from has threads. They end with the process: what they serve is
/// tracked.
pub(crate) fn spawn_all() -> io::Result<Vec<Handle>> {
    (0..Handle::current().metrics().num_workers()).map(|_| spawn()).collect()
}

fn spawn() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let serve = move || runtime.block_on(pending::<()>());
    thread::Builder::new().name("snisplit-accept".into()).spawn(serve)?;
    Ok(handle)
}
