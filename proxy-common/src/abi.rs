//! The contract with the kernel programs: names, sizes and layouts that both sides are built from.
//!
//! Everything here is `repr(C)` or `repr(u32)`, without `bool` and without padding, so that
//! `bpftool map dump` prints field and variant names from BTF. A socket is known by its cookie
//! (`SO_COOKIE`), which no other one of this boot has.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

pub mod packet;
pub mod sockmap;

/// Version of [`sockmap`]: changes whenever a layout or a meaning does.
pub const SOCKMAP_ABI_VERSION: u32 = 5;
/// Version of [`packet`], likewise.
pub const PACKET_ABI_VERSION: u32 = 5;

/// Routes at once; flows of more have number 0.
pub const MAX_ROUTES: usize = 16_384;
/// Bytes of a route's name that are kept.
pub const ROUTE_NAME_LEN: usize = 64;
/// Bytes of the event ring.
pub const EVENT_RING_BYTES: usize = 1 << 20;

/// A route, for people: its first name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct RouteName {
    /// Zeros behind its end.
    pub name: [u8; ROUTE_NAME_LEN],
}

/// Which way bytes go.
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
