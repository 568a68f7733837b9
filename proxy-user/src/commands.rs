//! The subcommands of `snisplit`, one module each. The subcommand `run` is in [`crate::daemon`].

pub mod certs;
pub mod check;
pub mod completions;
pub mod doctor;
pub mod explain;
pub mod flows;
pub mod net;
pub mod status;
pub mod top;

mod pinned;

/// A number with its noun: `1 flow`, `2 flows`.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
