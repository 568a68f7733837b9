//! The contract of the packet engine, whose flows leave the sockets: packets are translated on their
//! way between the client and the back end, and these records are all that is left of the proxy.
//!
//! A [`Tuple`] is always as packets *arrive* here, from one peer or the other; a [`Translation`] is what
//! packets of one direction go through, in numbers of the sender's unless it says otherwise.

mod record;
mod words;

pub use record::{
    FallbackReason, FlowEntry, FlowEvent, FlowState, PeerState, Translation, Tuple, TupleEntry,
};
pub use words::{ControlCommand, PACKET_COUNTER_COUNT, PacketCounter};

/// Changes whenever a layout or a meaning does.
pub const PACKET_ABI_VERSION: u32 = 4;

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
pub const PACKET_INTERFACES_MAP: &str = "packet_links";
/// In [`PACKET_INTERFACES_MAP`]: by its queue, as all else does.
pub const XMIT_QDISC: u32 = 1;
/// In [`PACKET_INTERFACES_MAP`]: it is one end of a veth pair whose other end is in another network namespace,
/// so a packet can arrive there at once (`bpf_redirect_peer`).
pub const XMIT_PEER: u32 = 2;
/// In [`PACKET_INTERFACES_MAP`]: [`XDP_PROGRAM`] is in its driver, which then takes frames from other drivers.
pub const XMIT_XDP: u32 = 3;

/// What a SYN to a back end must not offer, by the tuple that its answer comes by, without our address.
pub const SYN_CLAMP_MAP: &str = "packet_offers";

/// Numbers of flows that somebody wants cut (`snisplit flows cut`); the agent looks once a second.
pub const RESET_REQUESTS_MAP: &str = "packet_cuts";
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

const _: () = assert!(PACKET_COUNTERS_MAP.len() <= 15);
