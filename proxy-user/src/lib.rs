//! The agent of snisplit: all input and output around the decisions of [`snisplit_common`].
//!
//! Start with the module `session`, which handles one connection from accept to its record. [`daemon`]
//! starts and stops all parts of the agent.

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
