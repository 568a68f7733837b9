//! The lab: a client, the agent and back ends, each in a network namespace of its own.
//!
//! Tests say what happens from outside: who answered, which bytes, what ended it. Nothing here
//! sleeps; everything waits for a condition with a deadline.

pub mod acceptor_threads;
pub mod agent;
pub mod ari;
pub mod capture;
pub mod client_hello;
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
pub mod rng;
pub mod segment;
pub mod stream;
pub mod tenant;
pub mod test_run;
pub mod tls;
pub mod traffic;
pub mod wait;

/// Counts the running test as skipped, loudly: `cargo xtask test` lists all of these, and fails if
/// nothing else ran. Only for what a kernel lacks, never for a peer that could be installed.
pub fn record_skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIPPED {test}: {why}");
    let Some(path) = std::env::var_os("SNISPLIT_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    std::io::Write::write_all(&mut file.unwrap(), format!("{test}: {why}\n").as_bytes()).unwrap();
}
