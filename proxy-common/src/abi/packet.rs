//! Shared definitions of the packet engine, whose programs translate the packets of a flow from one
//! TCP connection to the other. The two sockets of such a flow are closed.
//!
//! A [`Tuple`] has the addresses and ports of packets as they *arrive* at this host, from the client or
//! from the back end. Sequence numbers are in the number space of the peer whose bytes they count,
//! and in host byte order.

use core::mem::offset_of;

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::Direction;

pub mod v3;

/// TC program for packets that arrive at an interface.
pub const INGRESS_PROGRAM: &str = "sni_in";
/// XDP program for frames that an interface's driver receives.
pub const XDP_PROGRAM: &str = "sni_xdp";
/// TC program for packets that this host sends.
pub const EGRESS_PROGRAM: &str = "sni_out";
/// Program that executes a [`ControlCommand`]. The agent runs it with `BPF_PROG_TEST_RUN`, because user
/// space has no atomic access to an entry of a map.
pub const CONTROL_PROGRAM: &str = "sni_ctl";

/// Map of one entry: [`PACKET_ABI_VERSION`](super::PACKET_ABI_VERSION).
pub const PACKET_ABI_MAP: &str = "packet_abi";
/// Map of a [`FlowEntry`] for each flow, by slot.
pub const PACKET_FLOWS_MAP: &str = "packet_flows";
/// Map of two [`TupleEntry`]s for each flow, by [`Tuple`].
pub const PACKET_TUPLES_MAP: &str = "packet_tuples";
/// Map of a [`RouteName`](super::RouteName) for each [`FlowEntry::route_id`].
pub const PACKET_ROUTES_MAP: &str = "packet_routes";
/// Ring buffer of [`FlowEvent`]s for the agent.
pub const PACKET_EVENTS_MAP: &str = "packet_events";
/// Map of counters for each CPU, one slot for each [`PacketCounter`].
pub const PACKET_COUNTERS_MAP: &str = "packet_counters";
/// Map of how to transmit by each interface that the programs are attached to, by interface index:
/// [`XMIT_QDISC`], [`XMIT_PEER`] or [`XMIT_XDP`].
pub const PACKET_INTERFACES_MAP: &str = "packet_ifaces";
/// Transmit through the interface's queueing discipline (`bpf_redirect`).
pub const XMIT_QDISC: u32 = 1;
/// Deliver to the other end of a veth pair, in another network namespace (`bpf_redirect_peer`).
pub const XMIT_PEER: u32 = 2;
/// Transmit from driver to driver: [`XDP_PROGRAM`] is attached, and the driver takes frames of others
/// (`ndo_xdp_xmit`).
pub const XMIT_XDP: u32 = 3;

/// Map of limits for the options of a SYN to a back end, by the tuple of the answer with an
/// all-zero destination address. A value combines [`CLAMP_MSS_MASK`], [`CLAMP_NO_TIMESTAMPS`] and
/// [`CLAMP_NO_SACK`].
pub const SYN_CLAMP_MAP: &str = "packet_clamps";
/// Bits of a value in [`SYN_CLAMP_MAP`] that hold the largest MSS to offer, in bytes.
pub const CLAMP_MSS_MASK: u32 = 0xffff;
/// Bit of a value in [`SYN_CLAMP_MAP`]: offer no timestamps (RFC 7323).
pub const CLAMP_NO_TIMESTAMPS: u32 = 1 << 16;
/// Bit of a value in [`SYN_CLAMP_MAP`]: offer no selective acknowledgements (RFC 2018).
pub const CLAMP_NO_SACK: u32 = 1 << 17;

/// Map of the IDs of flows to reset, which `snisplit flows reset` writes. The agent reads and empties
/// it once a second.
pub const RESET_REQUESTS_MAP: &str = "packet_resets";

/// Largest number of requests in [`RESET_REQUESTS_MAP`].
pub const MAX_RESET_REQUESTS: usize = 65_536;
/// Largest number of connections to back ends that are being opened with a clamped SYN.
pub const MAX_SYN_CLAMPS: usize = 65_536;
/// Largest number of flows.
pub const MAX_PACKET_FLOWS: usize = 131_072;
/// Largest number of tuples: two for each flow.
pub const MAX_TUPLES: usize = 2 * MAX_PACKET_FLOWS;
/// Largest number of interfaces.
pub const MAX_INTERFACES: usize = 1_024;

/// A flow. The agent writes the entry before the flow starts, the programs update it.
///
/// Fields that all packets read come first. Fields that the packets of one peer write are 128 bytes
/// apart from these and from those of the other peer. Two CPUs that forward the two directions would
/// otherwise invalidate each other's cache lines. A processor prefetches the next line and the other
/// line of an aligned pair (L1 next line and L2 spatial prefetchers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C, align(128))]
pub struct FlowEntry {
    /// State of the flow. Programs change it by compare-and-swap only.
    pub state: FlowState,
    /// Tuple of the packets that arrive from the client.
    pub client_tuple: Tuple,
    /// Translation of the client's packets, for the back end.
    pub to_backend: Translation,
    /// Tuple of the packets that arrive from the back end.
    pub backend_tuple: Tuple,
    /// Translation of the back end's packets, for the client.
    pub to_client: Translation,
    /// ID of the flow, the cookie of its client's socket. No two flows of a boot have the same.
    pub id: u64,
    /// Start of the flow in seconds since 1970.
    pub started_at: u64,
    /// Bytes that the back end must have acknowledged before the takeover, the SYN included. Then no
    /// byte of the client is left in user space.
    pub expected_acked: u32,
    /// Key of the route's name in [`PACKET_ROUTES_MAP`].
    pub route_id: u32,
    /// Why the flow stays with its sockets, in the state [`FlowState::Fallback`].
    pub fallback_reason: FallbackReason,
    /// Zero. Puts `client_state` on a cache line of its own.
    pub reserved: [u32; 9],
    /// What the programs have seen of the client.
    pub client_state: PeerState,
    /// Zero. Separates the cache lines of the two peers.
    pub padding: [u64; 8],
    /// What the programs have seen of the back end.
    pub backend_state: PeerState,
}

impl FlowEntry {
    /// Returns the translation of a direction's packets, and the tuple of packets that arrive from the
    /// receiver of that direction.
    #[inline(always)]
    pub const fn translation(&self, direction: Direction) -> (&Translation, &Tuple) {
        match direction {
            Direction::Up => (&self.to_backend, &self.backend_tuple),
            Direction::Down => (&self.to_client, &self.client_tuple),
        }
    }

    /// Returns the bytes of data that the back end and the client have acknowledged: up and down.
    pub const fn delivered_bytes(&self) -> (u64, u64) {
        let (client, backend) = (&self.client_state, &self.backend_state);
        (backend.acked_data_bytes(client), client.acked_data_bytes(backend))
    }
}

/// Addresses and ports of arriving packets. IPv4 addresses are `::ffff:a.b.c.d`.
///
/// The alignment lets programs read addresses as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C, align(4))]
pub struct Tuple {
    /// Address of the peer.
    pub source: [u8; 16],
    /// Address of this host.
    pub destination: [u8; 16],
    /// Port of the peer, in host byte order.
    pub source_port: u16,
    /// Port of this host, in host byte order.
    pub destination_port: u16,
}

/// The flow that a [`Tuple`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct TupleEntry {
    /// ID of the flow.
    pub flow_id: u64,
    /// Direction of the packets: [`Direction::Up`] if they arrive from the client.
    pub direction: Direction,
    /// Slot of the flow's entry in [`PACKET_FLOWS_MAP`].
    pub slot: u32,
}

/// Changes to the packets of one direction. Deltas are added modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct Translation {
    /// Delta of the sequence number.
    pub seq_delta: u32,
    /// Delta of the acknowledgement number and of the edges of SACK blocks.
    pub ack_delta: u32,
    /// Delta of the timestamp value (TSval).
    pub tsval_delta: u32,
    /// Delta of the timestamp echo reply (TSecr).
    pub tsecr_delta: u32,
    /// Smallest echo to send. The agent's kernel sent what an earlier echo answers, and the receiver's
    /// own timestamps are all later.
    pub min_tsecr: u32,
    /// Window scale of the sender, as a shift count.
    pub wscale_from: u8,
    /// Window scale that the receiver was told, as a shift count.
    pub wscale_to: u8,
    /// 1 if the sender uses ECN (RFC 3168) and the receiver does not. Then a packet with a congestion
    /// mark is dropped, because the receiver cannot report it (RFC 6040 §4.2). All other packets lose
    /// their ECN bits.
    pub strip_ecn: u8,
    /// Zero.
    pub reserved: u8,
}

/// What the programs have seen of one peer. `snd_nxt`, `fin_seq`, `valid_from` and `valid_to` number its
/// own bytes; `acked_seq` and `rcv_wnd_end` number the other peer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C, align(64))]
pub struct PeerState {
    /// Packets forwarded. A packet that GRO has merged counts once.
    pub packets: u64,
    /// Time of the last packet within its window, in nanoseconds of `CLOCK_MONOTONIC_COARSE`.
    pub last_seen_ns: u64,
    /// Bytes of the other peer that this one has acknowledged. A FIN counts as one.
    pub acked_bytes: u64,
    /// Sequence number after the last byte that the peer has sent.
    pub snd_nxt: u32,
    /// Sequence number after the peer's FIN, if `has_fin` is 1.
    pub fin_seq: u32,
    /// 1 if the peer has sent a FIN.
    pub has_fin: u32,
    /// Last acknowledgement number.
    pub acked_seq: u32,
    /// Right edge of the window that the peer offers.
    pub rcv_wnd_end: u32,
    /// First sequence number that was not too old when the other peer's state was last read.
    pub valid_from: u32,
    /// Last sequence number that the other peer had room for at that time, and one for a FIN or a window
    /// probe. Equal to `valid_from`: unknown, see [`untracked`](Self::untracked).
    pub valid_to: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

impl PeerState {
    /// Returns the state of a peer whose packets were forwarded without updates of this record. Programs
    /// then accept the sequence numbers of the next packet.
    pub const fn untracked(self) -> Self {
        // No packet is within this window: the peer is 2 GiB away from it.
        let unreachable_seq = self.snd_nxt ^ 1 << 31;
        Self { valid_from: unreachable_seq, valid_to: unreachable_seq, ..self }
    }

    /// Returns the bytes of data of the other peer that this one has acknowledged.
    const fn acked_data_bytes(&self, other: &Self) -> u64 {
        let is_fin_acked = other.has_fin != 0 && self.acked_seq == other.fin_seq;
        self.acked_bytes - is_fin_acked as u64
    }
}

/// State of a flow: who forwards its packets.
///
/// `Pending` becomes `TakingOver` or `Fallback`; `TakingOver` becomes `Offloaded` or `Fallback`;
/// `Offloaded` becomes one of the last three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u64)]
pub enum FlowState {
    /// The sockets forward, until the back end's first bytes arrive.
    #[default]
    Pending = 0,
    /// A program reads the sockets. Packets are dropped, and their senders repeat them.
    TakingOver = 1,
    /// The programs translate and forward packets.
    Offloaded = 2,
    /// The sockets forward for the rest of the flow; or the agent has released the flow.
    Fallback = 3,
    /// Both peers have sent a FIN, and both are acknowledged. Repetitions are still translated.
    Closed = 4,
    /// The client has reset the flow. Repetitions are still translated.
    ClientReset = 5,
    /// The back end has reset the flow. Repetitions are still translated.
    BackendReset = 6,
}

impl FlowState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::TakingOver,
        Self::Offloaded,
        Self::Fallback,
        Self::Closed,
        Self::ClientReset,
        Self::BackendReset,
    ];

    /// Whether the programs translate the flow's packets.
    pub const fn is_translated(self) -> bool {
        matches!(self, Self::Offloaded | Self::Closed | Self::ClientReset | Self::BackendReset)
    }

    /// Whether the flow has ended. The programs then translate repetitions only.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Closed | Self::ClientReset | Self::BackendReset)
    }

    /// Returns the identifier of the state in metrics, logs and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::TakingOver => "taking_over",
            Self::Offloaded => "offloaded",
            Self::Fallback => "fallback",
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
        }
    }
}

/// Why a flow stays with its sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum FallbackReason {
    /// No reason: the flow is offloaded, or its takeover has not been decided.
    #[default]
    None = 0,
    /// The agent asked for it: a socket received bytes, or the flow ended.
    Requested = 1,
    /// A socket was not found or not readable.
    NoSocket = 2,
    /// A socket was not in the state ESTABLISHED.
    NotEstablished = 3,
    /// Bytes of the client had not reached the back end.
    ClientBytesInFlight = 4,
    /// Bytes of the back end had not reached the client.
    BackendBytesInFlight = 5,
    /// A peer sent a FIN or RST before the takeover.
    FlowEnded = 6,
    /// No route leads to a peer, or none by an attached interface.
    NoRoute = 7,
    /// A socket has a congestion mark to report or to answer, or uses AccECN.
    EcnPending = 8,
}

impl FallbackReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Requested,
        Self::NoSocket,
        Self::NotEstablished,
        Self::ClientBytesInFlight,
        Self::BackendBytesInFlight,
        Self::FlowEnded,
        Self::NoRoute,
        Self::EcnPending,
    ];

    /// Returns the identifier of the reason in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Requested => "requested",
            Self::NoSocket => "no_socket",
            Self::NotEstablished => "not_established",
            Self::ClientBytesInFlight => "client_bytes_in_flight",
            Self::BackendBytesInFlight => "backend_bytes_in_flight",
            Self::FlowEnded => "flow_ended",
            Self::NoRoute => "no_route",
            Self::EcnPending => "ecn_pending",
        }
    }
}

/// Message of the programs to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct FlowEvent {
    /// ID of the flow.
    pub flow_id: u64,
    /// New state of the flow. [`FlowState::Pending`]: a new connection reuses the flow's port, so the agent
    /// can reclaim its entry.
    pub state: FlowState,
    /// Bytes of data that the back end has acknowledged, if the flow has ended.
    pub bytes_up: u64,
    /// Bytes of data that the client has acknowledged, if the flow has ended.
    pub bytes_down: u64,
}

/// Command of the agent to [`CONTROL_PROGRAM`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ControlCommand {
    /// Keep a pending flow with its sockets.
    Fallback = 0,
    /// Stop translating the flow, but for repetitions if it has ended. The agent can reuse the entry once
    /// no program that runs has a reference to it.
    Release = 1,
}

/// Slot of [`PACKET_COUNTERS_MAP`]. Each counts packets, but for [`EventLost`](Self::EventLost).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PacketCounter {
    /// Translated and forwarded by the TC program.
    Forwarded = 0,
    /// Dropped during a takeover.
    DroppedInTakeover = 1,
    /// Dropped: a socket whose flow is offloaded has sent it.
    Suppressed = 2,
    /// Dropped: no route, no neighbour, or the hop limit was reached.
    Unroutable = 3,
    /// Dropped: truncated, a fragment, or invalid options.
    Malformed = 4,
    /// SYNs for an offloaded flow, forwarded as an ACK that a live peer answers (RFC 5961 §4).
    ChallengeAck = 5,
    /// ICMP errors that quote a translated packet, translated and forwarded.
    IcmpForwarded = 6,
    /// Events that the ring buffer had no room for.
    EventLost = 7,
    /// Dropped: marked as congested, for a receiver without ECN.
    EcnDropped = 8,
    /// Translated and forwarded by the XDP program.
    XdpForwarded = 9,
}

/// Number of slots in [`PACKET_COUNTERS_MAP`].
pub const PACKET_COUNTER_COUNT: usize = PacketCounter::ALL.len();

impl PacketCounter {
    /// Every counter, in the order of their slots.
    pub const ALL: [Self; 10] = [
        Self::Forwarded,
        Self::DroppedInTakeover,
        Self::Suppressed,
        Self::Unroutable,
        Self::Malformed,
        Self::ChallengeAck,
        Self::IcmpForwarded,
        Self::EventLost,
        Self::EcnDropped,
        Self::XdpForwarded,
    ];

    /// Returns the identifier of the counter in metrics and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::DroppedInTakeover => "dropped_in_takeover",
            Self::Suppressed => "suppressed",
            Self::Unroutable => "unroutable",
            Self::Malformed => "malformed",
            Self::ChallengeAck => "challenge_ack",
            Self::IcmpForwarded => "icmp_forwarded",
            Self::EventLost => "event_lost",
            Self::EcnDropped => "ecn_dropped",
            Self::XdpForwarded => "xdp_forwarded",
        }
    }

    /// Returns the description of the counter for people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Forwarded => "translated and forwarded",
            Self::DroppedInTakeover => "dropped during a takeover",
            Self::Suppressed => "dropped: sent by a socket whose flow is offloaded",
            Self::Unroutable => "dropped: no route, no neighbour, or hop limit reached",
            Self::Malformed => "dropped: truncated, a fragment, or invalid options",
            Self::ChallengeAck => "SYNs for an offloaded flow, forwarded as a challenge",
            Self::IcmpForwarded => "ICMP errors translated and forwarded",
            Self::EventLost => "events lost because the ring buffer was full",
            Self::EcnDropped => "dropped: marked as congested, for a receiver without ECN",
            Self::XdpForwarded => "translated and forwarded in the driver (XDP)",
        }
    }
}

const _: () = assert!(PacketCounter::XdpForwarded as usize + 1 == PACKET_COUNTER_COUNT);
const _: () = assert!(PACKET_COUNTERS_MAP.len() <= 15);
const _: () = assert!(size_of::<Translation>() == 24 && size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<PeerState>() == 64 && size_of::<TupleEntry>() == 16);
const _: () = assert!(offset_of!(FlowEntry, client_state) == 192 && size_of::<FlowEntry>() == 384);
const _: () = assert!(offset_of!(FlowEntry, backend_state) == 320);
