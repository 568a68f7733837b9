//! The law of snisplit: everything that decides, nothing that acts.
//!
//! Bytes and time are arguments: no module here opens a socket, reads a file or asks the clock, so
//! each can be tested as a table and fuzzed alone. The kernel programs share [`abi`] and see
//! nothing else.

#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]

pub mod abi;
#[cfg(not(target_arch = "bpf"))]
pub mod alert;
#[cfg(not(target_arch = "bpf"))]
pub mod balance;
#[cfg(not(target_arch = "bpf"))]
pub mod decide;
#[cfg(not(target_arch = "bpf"))]
pub mod health;
#[cfg(not(target_arch = "bpf"))]
pub mod hello;
#[cfg(not(target_arch = "bpf"))]
pub mod kernels;
#[cfg(not(target_arch = "bpf"))]
pub mod limits;
#[cfg(not(target_arch = "bpf"))]
pub mod name;
#[cfg(not(target_arch = "bpf"))]
pub mod proxy_protocol;
#[cfg(not(target_arch = "bpf"))]
pub mod renewal;
#[cfg(not(target_arch = "bpf"))]
pub mod routes;
#[cfg(not(target_arch = "bpf"))]
pub mod starttls;
#[cfg(not(target_arch = "bpf"))]
pub mod wire;
