//! Shared definitions of the sockmap engine, whose program redirects data between the two sockets of
//! a flow.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::Direction;

/// Program that decides about each received buffer: `BPF_SK_SKB_STREAM_VERDICT` on [`SOURCES_MAP`].
pub const SOCKMAP_VERDICT_PROGRAM: &str = "sni_verdict";

/// Map of one entry: [`SOCKMAP_ABI_VERSION`](super::SOCKMAP_ABI_VERSION).
pub const ABI_MAP: &str = "abi";
/// Map of the sockets that data may be redirected to, by cookie. No program is attached to it.
pub const TARGETS_MAP: &str = "targets";
/// Map of the sockets whose received data the verdict program gets, by cookie.
pub const SOURCES_MAP: &str = "sources";
/// Map of a [`DirectionEntry`] for each direction of each flow, by the cookie of the receiving socket.
pub const FLOWS_MAP: &str = "flows";
/// Map of a [`RouteName`](super::RouteName) for each [`DirectionEntry::route_id`].
pub const ROUTES_MAP: &str = "routes";
/// Ring buffer of [`SockmapEvent`]s for the agent.
pub const EVENTS_MAP: &str = "events";
/// Map of counters for each CPU, one slot for each [`SockmapCounter`].
pub const COUNTERS_MAP: &str = "counters";

/// Largest number of sockets in a map. A flow has two.
pub const MAX_SOCKETS: usize = 262_144;

/// Bytes of kernel memory in one direction's backlog above which the program asks the agent to take
/// the direction over. The sender meets no flow control before the agent has done so.
pub const BACKLOG_SOFT_LIMIT: u64 = 1 << 20;
/// Bytes of kernel memory in one direction's backlog above which the program redirects nothing more.
pub const BACKLOG_HARD_LIMIT: u64 = 4 << 20;
/// Bytes of kernel memory that each buffer takes besides its data: `sk_buff`, `skb_shared_info` and
/// headers. For flows of single bytes this is nearly all of it.
pub const SKB_TRUESIZE_OVERHEAD: u64 = 1 << 10;
/// Denominator of [`DirectionEntry::avg_skb_len_x16`], and number of buffers that the average weighs.
pub const SKB_LEN_EWMA_WEIGHT: u32 = 16;

/// Bytes that a direction may move within [`CLASSIFY_WINDOW_NS`] before `engine = "auto"` classifies
/// it as bulk. splice(2) carries bulk at a lower cost (docs/performance/results.md).
pub const BULK_BYTES_PER_WINDOW: u64 = 8 << 20;
/// Average bytes that one peer may send before the other one answers, for the flow to count as
/// request and response. Such a flow is not bulk, however many bytes it moves.
pub const MAX_EXCHANGE_BYTES: u64 = 32 << 10;
/// Length of a classification window in nanoseconds.
pub const CLASSIFY_WINDOW_NS: u64 = 1_000_000_000;

/// Global of the program: offset of TCP's sequence number in an `sk_buff`, in bytes.
pub const SKB_SEQ_OFFSET: &str = "SKB_SEQ_OFFSET";
/// Global of the program: offset of `write_seq` in a `tcp_sock`, in bytes.
pub const WRITE_SEQ_OFFSET: &str = "WRITE_SEQ_OFFSET";
/// Global of the program: offset of `copied_seq` in a `tcp_sock`, in bytes.
pub const COPIED_SEQ_OFFSET: &str = "COPIED_SEQ_OFFSET";

/// One direction of a flow. The agent writes it before the flow starts, the verdict program updates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct DirectionEntry {
    /// Cookie of the socket that the data is redirected to.
    pub egress_cookie: u64,
    /// Bytes that the program has redirected.
    pub redirected_bytes: u64,
    /// Bytes that the program has passed to user space in the state [`DirectionState::Overflowing`].
    pub passed_bytes: u64,
    /// Start of the flow in seconds since 1970.
    pub started_at: u64,
    /// Bytes in a window above which the direction is bulk. 0 turns classification off.
    pub bulk_threshold: u64,
    /// Bytes redirected since `window_start_ns`.
    pub window_bytes: u64,
    /// Start of the classification window in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    pub window_start_ns: u64,
    /// `redirected_bytes` of the other direction when this one last read it. The program reads it for
    /// each buffer once `window_bytes` exceeds half of `bulk_threshold`.
    pub reverse_redirected: u64,
    /// `write_seq` of the egress socket when the first buffer arrived.
    pub initial_write_seq: u32,
    /// Sequence number expected next from the sender.
    pub next_seq: u32,
    /// What happens to the direction's data.
    pub state: DirectionState,
    /// Which direction of the flow this is.
    pub direction: Direction,
    /// Address of the client; IPv4 as `::ffff:a.b.c.d`.
    pub client_address: [u8; 16],
    /// Address of the back end; IPv4 as `::ffff:a.b.c.d`.
    pub backend_address: [u8; 16],
    /// Port of the client, in host byte order.
    pub client_port: u16,
    /// Port of the back end, in host byte order.
    pub backend_port: u16,
    /// Moving average of the length of buffers, in sixteenths of a byte.
    pub avg_skb_len_x16: u32,
    /// Key of the route's name in [`ROUTES_MAP`].
    pub route_id: u32,
    /// Number of times in this window that the other direction had moved when this one read it.
    pub direction_changes: u32,
}

/// State of one direction. It only moves forward: to a later variant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum DirectionState {
    /// No data has arrived yet.
    #[default]
    Pending = 0,
    /// The program redirects the data.
    Redirecting = 1,
    /// The receiver is slow or the direction is bulk: the program has asked the agent to take the
    /// direction over, and redirects data until then.
    Detaching = 2,
    /// The backlog has reached [`BACKLOG_HARD_LIMIT`]: the program passes all data to user space.
    Overflowing = 3,
    /// The order of the data is uncertain: the program drops all data, and the agent resets the flow.
    Poisoned = 4,
}

/// Message of the program to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct SockmapEvent {
    /// Cookie of the receiving socket: the key in [`FLOWS_MAP`].
    pub cookie: u64,
    /// What the agent must do.
    pub kind: SockmapEventKind,
    /// Zero.
    pub reserved: u32,
}

/// What a [`SockmapEvent`] asks of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum SockmapEventKind {
    /// Take the direction over.
    Detach = 0,
    /// Reset the flow.
    Poison = 1,
}

/// Slot of [`COUNTERS_MAP`]. Each counts buffers, but for [`EventLost`](Self::EventLost).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SockmapCounter {
    /// Redirected.
    Redirected = 0,
    /// Passed to user space, which has not taken the direction over in time.
    PassedToUser = 1,
    /// Dropped, and the flow poisoned: the egress socket is not in [`TARGETS_MAP`].
    EgressNotFound = 2,
    /// Passed to user space: the socket has no entry in [`FLOWS_MAP`].
    NoEntry = 3,
    /// Without new data: a FIN, or a repetition of one.
    NoData = 4,
    /// Redirected without leading bytes that had been forwarded before.
    Trimmed = 5,
    /// Dropped, and the flow poisoned: the sequence number is neither expected nor a repetition.
    InvalidSequence = 6,
    /// Dropped, and the flow poisoned: kernel memory was not readable, or trimming failed.
    KernelReadFailed = 7,
    /// Events that the ring buffer had no room for.
    EventLost = 8,
}

/// Number of slots in [`COUNTERS_MAP`].
pub const SOCKMAP_COUNTER_COUNT: usize = SockmapCounter::ALL.len();

impl SockmapCounter {
    /// Every counter, in the order of their slots.
    pub const ALL: [Self; 9] = [
        Self::Redirected,
        Self::PassedToUser,
        Self::EgressNotFound,
        Self::NoEntry,
        Self::NoData,
        Self::Trimmed,
        Self::InvalidSequence,
        Self::KernelReadFailed,
        Self::EventLost,
    ];

    /// Returns the identifier of the counter in metrics and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::PassedToUser => "passed_to_user",
            Self::EgressNotFound => "egress_not_found",
            Self::NoEntry => "no_entry",
            Self::NoData => "no_data",
            Self::Trimmed => "trimmed",
            Self::InvalidSequence => "invalid_sequence",
            Self::KernelReadFailed => "kernel_read_failed",
            Self::EventLost => "event_lost",
        }
    }

    /// Returns the description of the counter for people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::PassedToUser => {
                "passed to user space, which did not take the direction over in time"
            }
            Self::EgressNotFound => "dropped: the egress socket was not found",
            Self::NoEntry => "passed to user space: their socket belongs to no flow",
            Self::NoData => "without new data, such as a FIN",
            Self::Trimmed => "redirected without bytes that had been forwarded before",
            Self::InvalidSequence => "dropped: invalid sequence number",
            Self::KernelReadFailed => "dropped: kernel memory was not readable, or trimming failed",
            Self::EventLost => "events lost because the ring buffer was full",
        }
    }
}

const _: () = assert!(SockmapCounter::EventLost as usize + 1 == SOCKMAP_COUNTER_COUNT);
const _: () = assert!(size_of::<DirectionEntry>() == 128 && size_of::<SockmapEvent>() == 16);
const _: () = assert!(SOCKMAP_VERDICT_PROGRAM.len() <= 15 && COUNTERS_MAP.len() <= 15);
