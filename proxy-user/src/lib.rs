//! The shell of snisplit: all input and output around the law in `snisplit_common`.
//!
//! Read `conn` first: it is the life of a connection, a line a step. [`daemon`] builds everything
//! and owns shutdown; nothing imports it.

#![deny(unsafe_code)]

pub mod cert_commands;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod explain;
pub mod flow_commands;
pub mod net;
pub mod status;

mod acme;
mod bpf;
mod certs;
mod conn;
mod dns;
mod engine;
mod file_stamp;
mod instance;
mod sys;
mod telemetry;
