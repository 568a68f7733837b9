//! Maps, records and constants that the BPF programs and the agent share.
//!
//! Records are `repr(C)` without `bool` and without implicit padding, and enums have an integer
//! representation. So `bpftool map dump` prints the names of fields and variants from BTF. Names of
//! maps and programs have at most 15 bytes, which is what the kernel keeps (`BPF_OBJ_NAME_LEN`).
//!
//! A *cookie* is a socket's `SO_COOKIE`: a number that no other socket gets until the next boot.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

pub mod packet;
pub mod sockmap;

/// Version of [`sockmap`]. It changes whenever a layout, a name or a meaning does.
pub const SOCKMAP_ABI_VERSION: u32 = 5;
/// Version of [`packet`]. It changes whenever a layout, a name or a meaning does.
pub const PACKET_ABI_VERSION: u32 = 5;

/// Largest number of routes in a map of route names. Flows of further routes have route ID 0.
pub const MAX_ROUTES: usize = 16_384;
/// Size of a route's name in bytes. Longer names are cut.
pub const ROUTE_NAME_LEN: usize = 64;
/// Size of the ring buffer of an engine's events in bytes.
pub const EVENT_RING_BYTES: usize = 1 << 20;

/// Name of a route: the first server name of its `sni`. Only `bpftool` and the agent read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct RouteName {
    /// UTF-8, filled up with zeros.
    pub name: [u8; ROUTE_NAME_LEN],
}

/// Direction of a flow's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum Direction {
    /// From the client to the back end.
    #[default]
    Up = 0,
    /// From the back end to the client.
    Down = 1,
}
