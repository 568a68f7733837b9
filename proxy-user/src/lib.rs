//! The shell of snisplit: all input and output around the law in `snisplit_common`.
//!
//! Read [`conn`] first: it is the life of a connection, a line a step. [`daemon`] builds everything
//! and owns shutdown; nothing imports it.

#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod explain;
pub mod cert_commands;
pub mod flow_commands;
pub mod net;
pub mod status;

mod acme;
mod certs;
mod file_stamp;
mod conn;
mod dns;
mod engine;
mod bpf;
mod telemetry;
mod instance;
mod sys;
