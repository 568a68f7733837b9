//! What is counted, and all there are of what a number may mean.

use super::{FallbackReason, FlowState};

/// Slots of [`PACKET_COUNTERS_MAP`](super::PACKET_COUNTERS_MAP): how packets of flows fared.
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
    /// Each with its words for people.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Forwarded, "translated and sent on"),
        (Self::DroppedInTakeover, "dropped while a flow was taken over"),
        (Self::Suppressed, "dropped: sent by a socket whose flow the kernel has"),
        (Self::Unroutable, "dropped: no route, no neighbour, or the time to live was over"),
        (Self::Malformed, "dropped: cut short, a fragment, or with impossible options"),
        (Self::ChallengeAck, "SYNs for a running flow, sent on as a challenge"),
        (Self::IcmpForwarded, "ICMP errors translated and sent on"),
        (Self::EventLost, "events that the ring had no room for"),
        (Self::EcnDropped, "dropped: marked as congested, for a receiver without ECN"),
        (Self::XdpForwarded, "translated and sent on by the driver (XDP)"),
    ];
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
