//! Threads with one runtime each. Each accepts on a socket of its own, and serves what it accepts until
//! the handover of the flow ([`CarryResult::Handover`](crate::engine::CarryResult::Handover)).
//!
//! Most connections end before a handover. On one thread such a connection takes a tenth less CPU time
//! than on the multi-threaded runtime.

use std::future::pending;
use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};

/// Starts one thread for each worker of the calling runtime. The threads run until the process ends; a
/// `TaskTracker` tracks the connections that they serve.
///
/// # Errors
///
/// A thread or a runtime cannot be created.
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
