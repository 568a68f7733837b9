//! The contract of the packet engine, whose flows leave the sockets: packets are translated on their
//! way between the client and the back end, and these records are all that is left of the proxy.
//!
//! A [`Tuple`] is always as packets *arrive* here, from one peer or the other; a [`Translation`] is what
//! packets of one direction go through, in numbers of the sender's unless it says otherwise.

use core::mem::offset_of;

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use super::Direction;

pub mod v3;

/// Looks at what arrives at an interface.
pub const INGRESS_PROGRAM: &str = "sni_in";
/// Looks at what an interface's driver receives.
pub const XDP_PROGRAM: &str = "sni_xdp";
/// Looks at what this host itself sends.
pub const EGRESS_PROGRAM: &str = "sni_out";
/// Does for user space, which has no atomic access to a map, what a [`ControlCommand`] says: run by `BPF_PROG_TEST_RUN`.
pub const CONTROL_PROGRAM: &str = "sni_ctl";

/// [`PACKET_ABI_VERSION`], one entry.
pub const PACKET_ABI_MAP: &str = "packet_abi";
/// [`FlowEntry`]s, each in the slot that its legs tell.
pub const PACKET_FLOWS_MAP: &str = "packet_flows";
/// [`TupleEntry`]s by [`Tuple`].
pub const PACKET_TUPLES_MAP: &str = "packet_tuples";
/// The names behind [`FlowEntry::route_id`].
pub const PACKET_ROUTES_MAP: &str = "packet_routes";
/// [`FlowEvent`]s for user space.
pub const PACKET_EVENTS_MAP: &str = "packet_events";
/// Counters, one slot for each [`PacketCounter`], one set for each CPU.
pub const PACKET_COUNTERS_MAP: &str = "packet_counters";
/// How to leave by the interfaces that the programs are attached to ([`XMIT_QDISC`], [`XMIT_PEER`] or
/// [`XMIT_XDP`]), by their numbers.
pub const PACKET_INTERFACES_MAP: &str = "packet_ifaces";
/// In [`PACKET_INTERFACES_MAP`]: by its queue, as all else does.
pub const XMIT_QDISC: u32 = 1;
/// In [`PACKET_INTERFACES_MAP`]: it is one end of a veth pair whose other end is in another network namespace,
/// so a packet can arrive there at once (`bpf_redirect_peer`).
pub const XMIT_PEER: u32 = 2;
/// In [`PACKET_INTERFACES_MAP`]: [`XDP_PROGRAM`] is in its driver, which then takes frames from other drivers.
pub const XMIT_XDP: u32 = 3;

/// What a SYN to a back end must not offer, by the tuple that its answer comes by, without our address.
pub const SYN_CLAMP_MAP: &str = "packet_clamps";

/// Numbers of flows that somebody wants cut (`snisplit flows cut`); the agent looks once a second.
pub const RESET_REQUESTS_MAP: &str = "packet_resets";
/// Wishes at once.
pub const MAX_RESET_REQUESTS: usize = 65_536;

/// In [`SYN_CLAMP_MAP`]: the most bytes of a segment (MSS), 16 bits; the following are above them.
pub const CLAMP_MSS_MASK: u32 = 0xffff;
/// In [`SYN_CLAMP_MAP`]: no timestamps (RFC 7323).
pub const CLAMP_NO_TIMESTAMPS: u32 = 1 << 16;
/// In [`SYN_CLAMP_MAP`]: no selective acknowledgements (RFC 2018).
pub const CLAMP_NO_SACK: u32 = 1 << 17;

/// Connections to back ends that are being opened at once.
pub const MAX_SYN_CLAMPS: usize = 65_536;
/// Flows at once.
pub const MAX_PACKET_FLOWS: usize = 131_072;
/// Two for each flow.
pub const MAX_TUPLES: usize = 2 * MAX_PACKET_FLOWS;
/// Interfaces at once.
pub const MAX_INTERFACES: usize = 1_024;

/// A flow of the packet engine. What all its packets read comes first; what those of each peer write is apart from
/// that and from each other, for two CPUs that forward the two directions would take each other's cache lines
/// away, and a processor fetches the next line too, and the other one of a pair (L1 next line and L2 spatial
/// prefetchers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C, align(128))]
pub struct FlowEntry {
    /// Moves by compare-and-swap only.
    pub state: FlowState,
    /// As the client's packets arrive.
    pub client_tuple: Tuple,
    /// From the client to the back end.
    pub to_backend: Translation,
    /// As the back end's packets arrive.
    pub backend_tuple: Tuple,
    /// From the back end to the client.
    pub to_client: Translation,
    /// Which flow it is; no number is given twice.
    pub id: u64,
    /// Seconds since 1970 when the flow began.
    pub started_at: u64,
    /// Bytes that the back end's socket must have taken, the SYN included, before the kernel may take
    /// over: none of the client's is in user space then.
    pub expected_acked: u32,
    /// Its key in `packet_routes`.
    pub route_id: u32,
    /// Why the sockets kept it, if they did.
    pub fallback_reason: FallbackReason,
    /// Zero. Puts `client_state` on a cache line of its own.
    pub reserved: [u32; 9],
    /// What the client's packets have said.
    pub client_state: PeerState,
    /// Keeps the two apart.
    pub padding: [u64; 8],
    /// What the back end's packets have said.
    pub backend_state: PeerState,
}

impl FlowEntry {
    /// What the packets of a direction are translated by, and the tuple that their receiver's own packets
    /// arrive by.
    #[inline(always)]
    pub const fn translation(&self, direction: Direction) -> (&Translation, &Tuple) {
        match direction {
            Direction::Up => (&self.to_backend, &self.backend_tuple),
            Direction::Down => (&self.to_client, &self.client_tuple),
        }
    }

    /// Bytes of data that the receivers have acknowledged, up and down.
    pub const fn delivered_bytes(&self) -> (u64, u64) {
        let (client, backend) = (&self.client_state, &self.backend_state);
        (backend.acked_data_bytes(client), client.acked_data_bytes(backend))
    }
}

/// Whose packets: addresses and ports as they arrive. IPv4 as `::ffff:a.b.c.d`. Addresses are aligned
/// so that they can be read as words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
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
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct TupleEntry {
    /// Which flow.
    pub flow_id: u64,
    /// `Up` for what comes from the client.
    pub direction: Direction,
    /// Where it is in `packet_flows`.
    pub slot: u32,
}

/// One direction: what its packets are translated by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct Translation {
    /// Added to the sequence number.
    pub seq_delta: u32,
    /// Added to the acknowledgement and the edges of SACK blocks.
    pub ack_delta: u32,
    /// Added to a timestamp (TSval).
    pub tsval_delta: u32,
    /// Added to an echoed timestamp (TSecr).
    pub tsecr_delta: u32,
    /// The least that is echoed: what our kernel had sent before is older than anything the receiver
    /// sent.
    pub min_tsecr: u32,
    /// The sender's window scale.
    pub wscale_from: u8,
    /// The window scale that the receiver was told.
    pub wscale_to: u8,
    /// Whether the sender has ECN (RFC 3168) and the receiver has not. Then a packet that was marked on
    /// its way is dropped, for this receiver can tell nobody (RFC 6040 §4.2); the rest loses the bits.
    pub strip_ecn: u8,
    /// No padding.
    pub reserved: u8,
}

/// What the packets of one peer have said: of its own bytes, in its own numbers, and of the other peer's, in that
/// one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C, align(64))]
pub struct PeerState {
    /// Packets forwarded; one that the NIC merged counts once.
    pub packets: u64,
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`) of the last packet within its window.
    pub last_seen_ns: u64,
    /// Bytes of the other peer's that it has acknowledged, and one for the FIN.
    pub acked_bytes: u64,
    /// Behind the last byte of its own that was seen.
    pub snd_nxt: u32,
    /// Behind its FIN, if there was one.
    pub fin_seq: u32,
    /// Whether there was.
    pub has_fin: u32,
    /// What it has acknowledged of the other peer's.
    pub acked_seq: u32,
    /// Behind the last one of the other peer's that it has room for.
    pub rcv_wnd_end: u32,
    /// The first of its own that was not too old when what the other peer has said was last looked at.
    pub valid_from: u32,
    /// Behind the last one that the other peer had room for then, and a FIN. Where `oldest` is: nobody knows, for
    /// the flow went on while this was not written ([`Said::unfollowed`]).
    pub valid_to: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

impl PeerState {
    /// The same of a peer that goes on speaking, with nobody who takes note: the next thing that it says is
    /// believed.
    pub const fn untracked(self) -> Self {
        // Where it is not for another 2 GiB.
        let unreachable_seq = self.snd_nxt ^ 1 << 31;
        Self { valid_from: unreachable_seq, valid_to: unreachable_seq, ..self }
    }

    /// Bytes of the other peer's data that this one has acknowledged.
    const fn acked_data_bytes(&self, other: &Self) -> u64 {
        let is_fin_acked = other.has_fin != 0 && self.acked_seq == other.fin_seq;
        self.acked_bytes - is_fin_acked as u64
    }
}

/// Who forwards a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u64)]
pub enum FlowState {
    /// The sockets, until the back end's first bytes arrive.
    #[default]
    Pending = 0,
    /// Nobody, while the sockets are looked at: packets are dropped, and their senders repeat them.
    TakingOver = 1,
    /// The kernel: packets are translated.
    Offloaded = 2,
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
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(u32)]
pub enum FallbackReason {
    /// They did not.
    #[default]
    None = 0,
    /// User space wanted it: bytes came to a socket, or it ended.
    Requested = 1,
    /// A socket was not to be found, or not to be read.
    NoSocket = 2,
    /// A socket is not established.
    NotEstablished = 3,
    /// Bytes of the client were on their way to the back end.
    ClientBytesInFlight = 4,
    /// Bytes of the back end were on their way to the client.
    BackendBytesInFlight = 5,
    /// A peer ended the flow before it had answered.
    FlowEnded = 6,
    /// No route or no attached interface leads to a peer.
    NoRoute = 7,
    /// A socket has an answer to a mark of congestion to give or to get, or counts them (AccECN).
    EcnPending = 8,
}

/// Something that user space must hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Immutable, IntoBytes, KnownLayout, TryFromBytes))]
#[repr(C)]
pub struct FlowEvent {
    /// Which flow.
    pub flow_id: u64,
    /// What it has become; `Armed` says that another connection has its port, so its record may go.
    pub state: FlowState,
    /// Bytes of data that the back end has acknowledged, if the flow has ended.
    pub bytes_up: u64,
    /// Bytes of data that the client has acknowledged, likewise.
    pub bytes_down: u64,
}

/// Slots of [`PACKET_COUNTERS_MAP`]: how packets of flows fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PacketCounter {
    /// Translated and sent on.
    Forwarded = 0,
    /// Dropped while a flow was being taken over.
    DroppedInTakeover = 1,
    /// Sent by a socket whose flow the kernel has: dropped.
    Suppressed = 2,
    /// Dropped: no route or neighbour, or the time to live is over.
    Unroutable = 3,
    /// Dropped: cut short, a fragment, or options that cannot be.
    Malformed = 4,
    /// A SYN for a running flow, sent on as a question whether it still runs (RFC 5961 §4).
    ChallengeAck = 5,
    /// ICMP errors that quote a translated packet, translated and sent on.
    IcmpForwarded = 6,
    /// Events that the ring had no room for.
    EventLost = 7,
    /// Dropped: marked on its way (ECN), for a receiver that cannot tell of it.
    EcnDropped = 8,
    /// Translated and sent on by the interface's driver (XDP).
    XdpForwarded = 9,
}

/// How many slots there are.
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

/// What user space wants of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ControlCommand {
    /// That it stays with its sockets, if it is armed.
    Fallback = 0,
    /// That no more of it is translated, but of its end if it has ended. Only then may its record be another
    /// flow's, and only once no program has it.
    Release = 1,
}

impl FallbackReason {
    /// All of them.
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

    /// A short word for counters and logs.
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

impl FlowState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::TakingOver,
        Self::Offloaded,
        Self::Fallback,
        Self::Closed,
        Self::ClientReset,
        Self::BackendReset,
    ];

    /// Whether packets are translated.
    pub const fn is_translated(self) -> bool {
        matches!(self, Self::Offloaded | Self::Closed | Self::ClientReset | Self::BackendReset)
    }

    /// Whether the flow has ended, and only what is repeated of that is translated.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Closed | Self::ClientReset | Self::BackendReset)
    }

    /// A short word.
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

const _: () = assert!(PACKET_COUNTERS_MAP.len() <= 15);
const _: () = assert!(size_of::<Translation>() == 24 && size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<PeerState>() == 64 && size_of::<TupleEntry>() == 16);
const _: () = assert!(offset_of!(FlowEntry, client_state) == 192 && size_of::<FlowEntry>() == 384);
const _: () = assert!(offset_of!(FlowEntry, backend_state) == 320);
