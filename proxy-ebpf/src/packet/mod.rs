//! Programs of the packet engine.

mod action;
mod checksum;
mod flow_entry;
mod frame;
mod headers;
mod icmp;
mod lookup;
mod maps;
mod options;
mod route;
mod scratch;
mod sockets;
mod syn_clamp;
mod takeover;
pub(crate) mod tc;
mod tcp_timestamps;
mod track;
mod translate;
pub(crate) mod xdp;
