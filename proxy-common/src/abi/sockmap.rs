//! The contract of the sockmap engine.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::Direction;

/// The verdict program's name in the object and in `bpftool prog`; the kernel keeps 15 bytes.
pub const SOCKMAP_VERDICT_PROGRAM: &str = "sni_verdict";

/// [`ABI_VERSION`], one entry.
pub const ABI_MAP: &str = "abi";
/// Sockets that may be redirected to, by cookie; no program is attached.
pub const TARGETS_MAP: &str = "targets";
/// Sockets whose received data the verdict program sees, by cookie.
pub const SOURCES_MAP: &str = "sources";
/// One [`Flow`] for each direction, by the cookie of the socket that receives.
pub const FLOWS_MAP: &str = "flows";
/// The names behind the numbers in [`Flow::route`].
pub const ROUTES_MAP: &str = "routes";
/// [`Event`]s for user space.
pub const EVENTS_MAP: &str = "events";
/// Counters, one slot for each [`Count`], one set for each CPU.
pub const COUNTERS_MAP: &str = "counters";

/// Sockets at once, two for each flow; the loader may make it less.
pub const MAX_SOCKETS: usize = 262_144;
/// Bytes of memory that one direction may have waiting in the kernel for the peer's socket before user
/// space is asked to take the direction over. Until it has, the sender meets no resistance.
pub const BACKLOG_SOFT_LIMIT: u64 = 1 << 20;
/// Bytes of memory at which nothing more is redirected, whether it has or not.
pub const BACKLOG_HARD_LIMIT: u64 = 4 << 20;
/// Bytes of memory that a buffer is taken to need besides its data: `sk_buff`, `skb_shared_info` and
/// headers. A flow of single bytes consists of little else.
pub const SKB_TRUESIZE_OVERHEAD: u64 = 1 << 10;
/// What [`Flow::mean_len`] is counted in, and how many buffers it looks back.
pub const SKB_LEN_EWMA_WEIGHT: u32 = 16;

/// Bytes that a direction may move within [`PACE_NS`] before the choice `auto` takes it for bulk, which
/// splice(2) carries better (docs/benchmarks.md).
pub const BULK_BYTES_PER_WINDOW: u64 = 8 << 20;
/// Bytes that one side says before the other answers, at most and on average, where the two talk by turns: that
/// is no bulk, however much it comes to, and moves better in the kernel.
pub const MAX_EXCHANGE_BYTES: u64 = 32 << 10;
/// Nanoseconds that the pace is measured over.
pub const CLASSIFY_WINDOW_NS: u64 = 1_000_000_000;

/// Globals of the program: offsets in kernel structures, from the kernel's BTF.
pub const SKB_SEQ_OFFSET: &str = "SKB_SEQ_OFFSET";
/// Of `write_seq` in `tcp_sock`.
pub const WRITE_SEQ_OFFSET: &str = "WRITE_SEQ_OFFSET";
/// Of `copied_seq` in `tcp_sock`.
pub const COPIED_SEQ_OFFSET: &str = "COPIED_SEQ_OFFSET";

/// One direction of a flow, for the program and for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct DirectionEntry {
    /// The cookie of the socket that sends it on.
    pub egress_cookie: u64,
    /// Bytes that the kernel redirected.
    pub redirected_bytes: u64,
    /// Bytes that were left to user space.
    pub passed_bytes: u64,
    /// Seconds since 1970 when the flow began.
    pub started_at: u64,
    /// Bytes within [`PACE_NS`] at which the direction is given to user space; 0 is never.
    pub bulk_threshold: u64,
    /// Bytes redirected since `paced_from`.
    pub window_bytes: u64,
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`) that `paced` counts from.
    pub window_start_ns: u64,
    /// What the other direction had redirected when this one last looked, which it does once `paced` is more
    /// than half of `bulk`.
    pub reverse_redirected: u64,
    /// The sender's `write_seq` when the first byte came.
    pub initial_write_seq: u32,
    /// The next sequence number that is expected.
    pub next_seq: u32,
    /// What becomes of its bytes.
    pub state: DirectionState,
    /// Which way it goes.
    pub direction: Direction,
    /// The client's address; IPv4 as `::ffff:a.b.c.d`.
    pub client_address: [u8; 16],
    /// The back end's address likewise.
    pub backend_address: [u8; 16],
    /// The client's port.
    pub client_port: u16,
    /// The back end's port.
    pub backend_port: u16,
    /// Bytes in a buffer of late, on average, in sixteenths of a byte.
    pub avg_skb_len_x16: u32,
    /// Its key in `routes`.
    pub route_id: u32,
    /// How often it found then that the other one had said more.
    pub direction_changes: u32,
}

/// What becomes of the bytes of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum DirectionState {
    /// None came yet.
    #[default]
    Pending = 0,
    /// The kernel redirects them.
    Redirecting = 1,
    /// Its peer is slow, or it is bulk: user space is asked to take the direction over, for good.
    Detaching = 2,
    /// It has not in time: nothing more is redirected, and bytes are left to it one by one.
    Overflowing = 3,
    /// Their order is in doubt: nothing is forwarded any more, and the flow is reset.
    Poisoned = 4,
}

/// Something that only user space can deal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct SockmapEvent {
    /// The socket that received.
    pub cookie: u64,
    /// What happened.
    pub kind: SockmapEventKind,
    /// No padding.
    pub reserved: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum SockmapEventKind {
    /// User space is to carry this direction from now on.
    Detach = 0,
    /// The flow must be reset.
    Poison = 1,
}

/// Slots of [`COUNTERS_MAP`]: how socket buffers fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SockmapCounter {
    /// Redirected.
    Redirected = 0,
    /// Left to user space because it was too slow to take over.
    PassedToUser = 1,
    /// Dropped, and the flow poisoned: the peer's socket is not to be found.
    EgressNotFound = 2,
    /// Left to user space because the socket belongs to no flow.
    NoEntry = 3,
    /// Without data of its own: a FIN.
    NoData = 4,
    /// Redirected after bytes that had been forwarded already were cut off in front.
    Trimmed = 5,
    /// Dropped, and the flow poisoned: a sequence number that cannot be.
    InvalidSequence = 6,
    /// Dropped, and the flow poisoned: kernel memory could not be read, or the cut failed.
    KernelReadFailed = 7,
    /// Events that the ring had no room for.
    EventLost = 8,
}

/// How many slots there are.
pub const SOCKMAP_COUNTER_COUNT: usize = SockmapCounter::ALL.len();

impl SockmapCounter {
    /// Each with its words for people.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Redirected, "redirected"),
        (Self::PassedToUser, "left to user space, which was too slow to take over"),
        (Self::EgressNotFound, "dropped: the peer's socket was not to be found"),
        (Self::NoEntry, "left to user space: of no flow"),
        (Self::NoData, "without data of their own: a FIN"),
        (Self::Trimmed, "redirected after what had been forwarded already was cut off"),
        (Self::InvalidSequence, "dropped: a sequence number that cannot be"),
        (Self::KernelReadFailed, "dropped: kernel memory could not be read, or the cut failed"),
        (Self::EventLost, "events that the ring had no room for"),
    ];
}

const _: () = assert!(SockmapCounter::EventLost as usize + 1 == SOCKMAP_COUNTER_COUNT);
const _: () = assert!(size_of::<DirectionEntry>() == 128 && size_of::<SockmapEvent>() == 16);
const _: () = assert!(SOCKMAP_VERDICT_PROGRAM.len() <= 15 && COUNTERS_MAP.len() <= 15);
