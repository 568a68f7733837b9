//! Empty library. `proxy-user` depends on it, so that cargo rebuilds the agent when a BPF program
//! changes.

#![no_std]
