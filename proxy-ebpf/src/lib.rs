//! Empty: it lets `proxy-user` depend on this package, so that cargo rebuilds the agent when a
//! kernel program changes.

#![no_std]
