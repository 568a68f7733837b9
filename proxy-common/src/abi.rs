//! The contract with the kernel programs: names, sizes and layouts that both sides are built from.
//!
//! Everything here is `repr(C)` or `repr(u32)`, without `bool` and without padding, so that
//! `bpftool map dump` prints field and variant names from BTF. A socket is known by its cookie
//! (`SO_COOKIE`), which no other one of this boot has.

pub mod packet;

/// Changes whenever a layout or a meaning does.
pub const ABI_VERSION: u32 = 4;

/// The verdict program's name in the object and in `bpftool prog`; the kernel keeps 15 bytes.
pub const VERDICT_PROGRAM: &str = "sni_verdict";

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
pub const SOCKETS_MAX: usize = 262_144;
/// Routes at once; flows of more have number 0.
pub const ROUTES_MAX: usize = 16_384;
/// Bytes of a route's name that are kept.
pub const NAME_MAX: usize = 64;
/// Bytes of the event ring.
pub const EVENTS_BYTES: usize = 1 << 20;

/// Bytes of memory that one direction may have waiting in the kernel for the peer's socket before user
/// space is asked to take the direction over. Until it has, the sender meets no resistance.
pub const BACKLOG_SOFT: u64 = 1 << 20;
/// Bytes of memory at which nothing more is redirected, whether it has or not.
pub const BACKLOG_HARD: u64 = 4 << 20;
/// Bytes of memory that a buffer is taken to need besides its data: `sk_buff`, `skb_shared_info` and
/// headers. A flow of single bytes consists of little else.
pub const BUFFER_OVERHEAD: u64 = 1 << 10;
/// What [`Flow::mean_len`] is counted in, and how many buffers it looks back.
pub const MEAN_OF: u32 = 16;

/// Bytes that a direction may move within [`PACE_NS`] before the choice `auto` takes it for bulk, which
/// splice(2) carries better (docs/benchmarks.md).
pub const BULK: u64 = 8 << 20;
/// Bytes that one side says before the other answers, at most and on average, where the two talk by turns: that
/// is no bulk, however much it comes to, and moves better in the kernel.
pub const TURN: u64 = 32 << 10;
/// Nanoseconds that the pace is measured over.
pub const PACE_NS: u64 = 1_000_000_000;

/// Globals of the program: offsets in kernel structures, from the kernel's BTF.
pub const SKB_SEQ_OFFSET: &str = "SKB_SEQ_OFFSET";
/// Of `write_seq` in `tcp_sock`.
pub const WRITE_SEQ_OFFSET: &str = "WRITE_SEQ_OFFSET";
/// Of `copied_seq` in `tcp_sock`.
pub const COPIED_SEQ_OFFSET: &str = "COPIED_SEQ_OFFSET";

/// One direction of a flow, for the program and for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The cookie of the socket that sends it on.
    pub peer: u64,
    /// Bytes that the kernel redirected.
    pub redirected: u64,
    /// Bytes that were left to user space.
    pub passed: u64,
    /// Seconds since 1970 when the flow began.
    pub opened: u64,
    /// Bytes within [`PACE_NS`] at which the direction is given to user space; 0 is never.
    pub bulk: u64,
    /// Bytes redirected since `paced_from`.
    pub paced: u64,
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`) that `paced` counts from.
    pub paced_from: u64,
    /// What the other direction had redirected when this one last looked, which it does once `paced` is more
    /// than half of `bulk`.
    pub heard: u64,
    /// The sender's `write_seq` when the first byte came.
    pub base: u32,
    /// The next sequence number that is expected.
    pub next_seq: u32,
    /// What becomes of its bytes.
    pub state: State,
    /// Which way it goes.
    pub direction: Direction,
    /// The client's address; IPv4 as `::ffff:a.b.c.d`.
    pub client: [u8; 16],
    /// The back end's address likewise.
    pub backend: [u8; 16],
    /// The client's port.
    pub client_port: u16,
    /// The back end's port.
    pub backend_port: u16,
    /// Bytes in a buffer of late, on average, in sixteenths of a byte.
    pub mean_len: u32,
    /// Its key in `routes`.
    pub route: u32,
    /// How often it found then that the other one had said more.
    pub turns: u32,
}

/// A route, for people: its first name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Route {
    /// Zeros behind its end.
    pub name: [u8; NAME_MAX],
}

/// What becomes of the bytes of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// None came yet.
    #[default]
    Armed = 0,
    /// The kernel redirects them.
    Spliced = 1,
    /// Its peer is slow, or it is bulk: user space is asked to take the direction over, for good.
    Leaving = 2,
    /// It has not in time: nothing more is redirected, and bytes are left to it one by one.
    Spilling = 3,
    /// Their order is in doubt: nothing is forwarded any more, and the flow is reset.
    Poisoned = 4,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// From the client to the back end.
    #[default]
    Up = 0,
    /// From the back end to the client.
    Down = 1,
}

/// Something that only user space can deal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// The socket that received.
    pub cookie: u64,
    /// What happened.
    pub kind: EventKind,
    /// No padding.
    pub reserved: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// User space is to carry this direction from now on.
    Leave = 0,
    /// The flow must be reset.
    Poison = 1,
}

/// Slots of [`COUNTERS_MAP`]: how socket buffers fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Redirected.
    Redirected = 0,
    /// Left to user space because it was too slow to take over.
    Passed = 1,
    /// Dropped, and the flow poisoned: the peer's socket is not to be found.
    NoTarget = 2,
    /// Left to user space because the socket belongs to no flow.
    NoFlow = 3,
    /// Without data of its own: a FIN.
    Empty = 4,
    /// Redirected after bytes that had been forwarded already were cut off in front.
    Trimmed = 5,
    /// Dropped, and the flow poisoned: a sequence number that cannot be.
    BadSequence = 6,
    /// Dropped, and the flow poisoned: kernel memory could not be read, or the cut failed.
    Unreadable = 7,
    /// Events that the ring had no room for.
    EventLost = 8,
}

/// How many slots there are.
pub const COUNTS: usize = Count::ALL.len();

impl Count {
    /// Each with its words for people.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Redirected, "redirected"),
        (Self::Passed, "left to user space, which was too slow to take over"),
        (Self::NoTarget, "dropped: the peer's socket was not to be found"),
        (Self::NoFlow, "left to user space: of no flow"),
        (Self::Empty, "without data of their own: a FIN"),
        (Self::Trimmed, "redirected after what had been forwarded already was cut off"),
        (Self::BadSequence, "dropped: a sequence number that cannot be"),
        (Self::Unreadable, "dropped: kernel memory could not be read, or the cut failed"),
        (Self::EventLost, "events that the ring had no room for"),
    ];
}

const _: () = assert!(Count::EventLost as usize + 1 == COUNTS);
const _: () = assert!(size_of::<Flow>() == 128 && size_of::<Event>() == 16);
const _: () = assert!(VERDICT_PROGRAM.len() <= 15 && COUNTERS_MAP.len() <= 15);
