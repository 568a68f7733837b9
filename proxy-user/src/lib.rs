//! The shell of snisplit: all input and output around the law in `snisplit_common`.
//!
//! Read `session` first: it is the life of a connection, a line a step. [`daemon`] builds everything
//! and owns shutdown; nothing imports it.

#![deny(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod reference;

mod acme;
mod bpf;
mod certs;
mod dns;
mod downstream;
mod engine;
mod file_stamp;
mod instance;
mod net;
mod session;
mod sys;
mod telemetry;
mod upstream;
