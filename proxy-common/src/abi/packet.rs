//! The contract of the packet engine, whose flows leave the sockets: packets are translated on their
//! way between the client and the back end, and these records are all that is left of the proxy.
//!
//! A [`Tuple`] is always as packets *arrive* here, from one peer or the other; a [`Way`] is what
//! packets of one direction go through, in numbers of the sender's unless it says otherwise.

mod words;

pub use words::{FATES, Fate, Wish};

use super::Direction;

/// Changes whenever a layout or a meaning does.
pub const PACKET_ABI_VERSION: u32 = 3;

/// Looks at what arrives at an interface.
pub const IN_PROGRAM: &str = "sni_in";
/// Looks at what an interface's driver receives.
pub const EARLY_PROGRAM: &str = "sni_early";
/// Looks at what this host itself sends.
pub const OUT_PROGRAM: &str = "sni_out";
/// Does for user space, which has no atomic access to a map, what a [`Wish`] says: run by `BPF_PROG_TEST_RUN`.
pub const SETTLE_PROGRAM: &str = "sni_settle";

/// [`PACKET_ABI_VERSION`], one entry.
pub const PACKET_ABI_MAP: &str = "packet_abi";
/// [`Splice`]s by number.
pub const SPLICES_MAP: &str = "packet_flows";
/// [`Leg`]s by [`Tuple`].
pub const TUPLES_MAP: &str = "packet_tuples";
/// The names behind [`Splice::route`].
pub const PACKET_ROUTES_MAP: &str = "packet_routes";
/// [`Told`]s for user space.
pub const PACKET_EVENTS_MAP: &str = "packet_events";
/// Counters, one slot for each [`Fate`], one set for each CPU.
pub const PACKET_COUNTERS_MAP: &str = "packet_counters";
/// How to leave by the interfaces that the programs are attached to ([`BY_QUEUE`], [`BY_PEER`] or
/// [`BY_DRIVER`]), by their numbers.
pub const INTERFACES_MAP: &str = "packet_links";
/// In [`INTERFACES_MAP`]: by its queue, as all else does.
pub const BY_QUEUE: u32 = 1;
/// In [`INTERFACES_MAP`]: it is one end of a veth pair whose other end is in another network namespace,
/// so a packet can arrive there at once (`bpf_redirect_peer`).
pub const BY_PEER: u32 = 2;
/// In [`INTERFACES_MAP`]: [`EARLY_PROGRAM`] is in its driver, which then takes frames from other drivers.
pub const BY_DRIVER: u32 = 3;

/// What a SYN to a back end must not offer, by the tuple that its answer comes by, without our address.
pub const OFFERS_MAP: &str = "packet_offers";

/// Numbers of flows that somebody wants cut (`snisplit flows cut`); the agent looks once a second.
pub const CUTS_MAP: &str = "packet_cuts";
/// Wishes at once.
pub const CUTS_MAX: usize = 65_536;

/// In [`OFFERS_MAP`]: the most bytes of a segment (MSS), 16 bits; the following are above them.
pub const MSS_MASK: u32 = 0xffff;
/// In [`OFFERS_MAP`]: no timestamps (RFC 7323).
pub const NO_STAMPS: u32 = 1 << 16;
/// In [`OFFERS_MAP`]: no selective acknowledgements (RFC 2018).
pub const NO_SACK: u32 = 1 << 17;

/// Connections to back ends that are being opened at once.
pub const OFFERS_MAX: usize = 65_536;
/// Flows at once.
pub const SPLICES_MAX: usize = 131_072;
/// Two for each flow.
pub const TUPLES_MAX: usize = 2 * SPLICES_MAX;
/// Interfaces at once.
pub const INTERFACES_MAX: usize = 1_024;

/// A flow of the packet engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Splice {
    /// Moves by compare-and-swap only.
    pub state: SpliceState,
    /// Seconds since 1970 when the flow began.
    pub opened: u64,
    /// As the client's packets arrive.
    pub client: Tuple,
    /// As the back end's packets arrive.
    pub backend: Tuple,
    /// From the client to the back end.
    pub up: Way,
    /// From the back end to the client.
    pub down: Way,
    /// Bytes that the back end's socket must have taken, the SYN included, before the kernel may take
    /// over: none of the client's is in user space then.
    pub due: u32,
    /// Its key in `packet_routes`.
    pub route: u32,
    /// Why the sockets kept it, if they did.
    pub why: Why,
    /// No padding.
    pub reserved: u32,
}

impl Splice {
    /// What the packets of a direction are translated by, and the tuple that their receiver's own packets
    /// arrive by.
    #[inline(always)]
    pub const fn way(&self, direction: Direction) -> (&Way, &Tuple) {
        match direction {
            Direction::Up => (&self.up, &self.backend),
            Direction::Down => (&self.down, &self.client),
        }
    }
}

/// Whose packets: addresses and ports as they arrive. IPv4 as `::ffff:a.b.c.d`. Addresses are aligned
/// so that they can be read as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct Tuple {
    /// The peer.
    pub source: [u8; 16],
    /// This host.
    pub destination: [u8; 16],
    /// The peer's.
    pub source_port: u16,
    /// This host's.
    pub destination_port: u16,
}

/// What a tuple belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Leg {
    /// A key of `packet_flows`.
    pub splice: u64,
    /// `Up` for what comes from the client.
    pub direction: Direction,
    /// No padding.
    pub reserved: u32,
}

/// One direction: what is added to its packets' numbers, and what they have come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    /// Packets forwarded; one that the NIC merged counts once.
    pub packets: u64,
    /// Bytes that the receiver has acknowledged, and one for the FIN.
    pub bytes: u64,
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`) of the last packet within its window.
    pub last_seen: u64,
    /// Added to the sequence number.
    pub seq: u32,
    /// Added to the acknowledgement and the edges of SACK blocks.
    pub ack: u32,
    /// Added to a timestamp (TSval).
    pub stamp: u32,
    /// Added to an echoed timestamp (TSecr).
    pub echo: u32,
    /// The least that is echoed: what our kernel had sent before is older than anything the receiver
    /// sent.
    pub echo_floor: u32,
    /// The sender's window scale.
    pub scale_in: u32,
    /// The window scale that the receiver was told.
    pub scale_out: u32,
    /// The first number that was translated.
    pub start: u32,
    /// Behind the last one seen.
    pub end: u32,
    /// What the receiver has acknowledged.
    pub acked: u32,
    /// Behind the last one that the receiver has room for.
    pub edge: u32,
    /// Behind the FIN, if there was one.
    pub fin: u32,
    /// Whether there was.
    pub has_fin: u32,
    /// Whether the sender has ECN (RFC 3168) and the receiver has not. Then a packet that was marked on
    /// its way is dropped, for this receiver can tell nobody (RFC 6040 §4.2); the rest loses the bits.
    pub ends_ecn: u32,
}

/// Who forwards a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum SpliceState {
    /// The sockets, until the back end's first bytes arrive.
    #[default]
    Armed = 0,
    /// Nobody, while the sockets are looked at: packets are dropped, and their senders repeat them.
    Switching = 1,
    /// The kernel: packets are translated.
    Spliced = 2,
    /// The sockets, for good.
    Fallback = 3,
    /// It has ended in order. What is repeated of its end is still translated.
    Closed = 4,
    /// The client has reset it.
    ClientReset = 5,
    /// The back end has reset it.
    BackendReset = 6,
}

/// Why the sockets kept a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Why {
    /// They did not.
    #[default]
    Unasked = 0,
    /// User space wanted it: bytes came to a socket, or it ended.
    Wanted = 1,
    /// A socket was not to be found, or not to be read.
    NoSocket = 2,
    /// A socket is not established.
    NotEstablished = 3,
    /// Bytes of the client were on their way to the back end.
    ClientBytes = 4,
    /// Bytes of the back end were on their way to the client.
    BackendBytes = 5,
    /// A peer ended the flow before it had answered.
    Ended = 6,
    /// No route or no attached interface leads to a peer.
    NoRoute = 7,
    /// A socket has an answer to a mark of congestion to give or to get, or counts them (AccECN).
    Marked = 8,
}

/// Something that user space must hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Told {
    /// Which flow.
    pub splice: u64,
    /// What it has become; `Armed` says that another connection has its port, so its record may go.
    pub state: SpliceState,
    /// Bytes of data that the back end has acknowledged, if the flow has ended.
    pub up: u64,
    /// Bytes of data that the client has acknowledged, likewise.
    pub down: u64,
}

impl Way {
    /// Bytes of data that the receiver has acknowledged.
    pub const fn delivered(&self) -> u64 {
        let is_fin_acked = self.has_fin != 0 && self.acked == self.fin;
        self.bytes - is_fin_acked as u64
    }
}

const _: () = assert!(size_of::<Way>() == 80 && size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<Splice>() == 264 && size_of::<Leg>() == 16);
const _: () = assert!(PACKET_COUNTERS_MAP.len() <= 15);
