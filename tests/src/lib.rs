//! The lab of the root suite: a client, the agent and back ends, each in a network namespace of its own.
//!
//! Tests look at the agent from outside: which back end answered, which bytes arrived, how a connection ended. Helpers
//! wait for a condition with a timeout, and do not sleep for a fixed time.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::{env, thread};

pub mod acceptor_threads;
pub mod agent;
pub mod ari;
pub mod capture;
pub mod client_hello;
pub mod concurrent_load;
pub mod dns;
pub mod far_network;
pub mod flow;
pub mod impaired_link;
pub mod kernel;
pub mod lab;
pub mod link;
mod namespace;
pub mod offloaded_flow;
pub mod pebble;
pub mod peer;
pub mod segment;
pub mod stream;
pub mod tenant;
pub mod test_run;
pub mod testbed;
pub mod tls;
pub mod traffic;
pub mod wait;

/// Records the running test as skipped, for this reason. `cargo xtask test` lists the skipped tests, and fails
/// if no test ran at all. A test may skip what a kernel lacks, but not a peer that could be installed.
///
/// The file is named by `SNISPLIT_SKIPS`; its folder is created if it does not exist.
pub fn record_skip(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED {test}: {reason}");
    let Some(path) = env::var_os("SNISPLIT_SKIPS").map(PathBuf::from) else { return };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).unwrap();
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
}
