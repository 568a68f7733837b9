//! The contract with the kernel programs: names, sizes and layouts that both sides are built from.
//!
//! Everything here is `repr(C)` or `repr(u32)`, without `bool` and without padding, so that
//! `bpftool map dump` prints field and variant names from BTF.

/// The verdict program's name in the object and in `bpftool prog`; the kernel keeps 15 bytes.
pub const VERDICT_PROGRAM: &str = "sni_verdict";

/// Sockets whose received data the verdict program sees, by socket cookie.
pub const SOURCES_MAP: &str = "sources";

/// How many sockets `sources` holds.
pub const SOURCES_MAX: usize = 1024;

/// Counters, one slot for each [`Count`], one set for each CPU.
pub const COUNTERS_MAP: &str = "counters";

/// Slots of [`COUNTERS_MAP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Socket buffers that were passed on to the socket's own reader.
    Passed = 0,
    /// Bytes in them.
    PassedBytes = 1,
    /// Socket buffers without data: a FIN on its own.
    Empty = 2,
}

/// How many slots there are.
pub const COUNTS: usize = 3;

const _: () = assert!(Count::Empty as usize + 1 == COUNTS);
const _: () = assert!(VERDICT_PROGRAM.len() <= 15 && COUNTERS_MAP.len() <= 15);
