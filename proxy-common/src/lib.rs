//! Decision core of snisplit: pure functions without I/O.
//!
//! Bytes and time are arguments. No module opens a socket, reads a file or reads the clock, so tests can
//! cover each one with tables and by fuzzing. The BPF programs use [`abi`] only.

#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]

pub mod abi;
#[cfg(not(target_arch = "bpf"))]
pub mod alert;
#[cfg(not(target_arch = "bpf"))]
pub mod balance;
#[cfg(not(target_arch = "bpf"))]
pub mod client_hello;
#[cfg(not(target_arch = "bpf"))]
pub mod cursor;
#[cfg(not(target_arch = "bpf"))]
pub mod decide;
#[cfg(not(target_arch = "bpf"))]
pub mod health;
#[cfg(not(target_arch = "bpf"))]
pub mod http01;
#[cfg(not(target_arch = "bpf"))]
pub mod kernel_bugs;
#[cfg(not(target_arch = "bpf"))]
pub mod limits;
#[cfg(not(target_arch = "bpf"))]
pub mod proxy_protocol;
#[cfg(not(target_arch = "bpf"))]
pub mod renewal;
#[cfg(not(target_arch = "bpf"))]
pub mod route_table;
#[cfg(not(target_arch = "bpf"))]
pub mod server_name;
#[cfg(not(target_arch = "bpf"))]
pub mod starttls;
