//! The verbs of the command line, one module each; `run` is in [`crate::daemon`].

pub mod certs;
pub mod check;
pub mod doctor;
pub mod explain;
pub mod flows;
pub mod net;
pub mod status;
pub mod top;

mod pinned;
