//! What is counted, and all there are of what a number may mean.

use super::{SpliceState, Why};

/// Slots of [`PACKET_COUNTERS_MAP`](super::PACKET_COUNTERS_MAP): how packets of flows fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// Translated and sent on.
    Forwarded = 0,
    /// Dropped while a flow was being taken over.
    Switching = 1,
    /// Sent by a socket whose flow the kernel has: dropped.
    Gagged = 2,
    /// Dropped: no route or neighbour, or the time to live is over.
    Unroutable = 3,
    /// Dropped: cut short, a fragment, or options that cannot be.
    Malformed = 4,
    /// A SYN for a running flow, sent on as a question whether it still runs (RFC 5961 §4).
    Challenged = 5,
    /// ICMP errors that quote a translated packet, translated and sent on.
    Icmp = 6,
    /// Events that the ring had no room for.
    EventLost = 7,
    /// Dropped: marked on its way (ECN), for a receiver that cannot tell of it.
    Marked = 8,
    /// Translated and sent on by the interface's driver (XDP).
    Early = 9,
}

/// How many slots there are.
pub const FATES: usize = Fate::ALL.len();

impl Fate {
    /// Each with its words for people.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Forwarded, "translated and sent on"),
        (Self::Switching, "dropped while a flow was taken over"),
        (Self::Gagged, "dropped: sent by a socket whose flow the kernel has"),
        (Self::Unroutable, "dropped: no route, no neighbour, or the time to live was over"),
        (Self::Malformed, "dropped: cut short, a fragment, or with impossible options"),
        (Self::Challenged, "SYNs for a running flow, sent on as a challenge"),
        (Self::Icmp, "ICMP errors translated and sent on"),
        (Self::EventLost, "events that the ring had no room for"),
        (Self::Marked, "dropped: marked as congested, for a receiver without ECN"),
        (Self::Early, "translated and sent on by the driver (XDP)"),
    ];
}

/// What user space wants of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Wish {
    /// That it stays with its sockets, if it is armed.
    Settle = 0,
    /// That no more of it is translated, but of its end if it has ended. Only then may its record be another
    /// flow's, and only once no program has it.
    LetGo = 1,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Unasked,
        Self::Wanted,
        Self::NoSocket,
        Self::NotEstablished,
        Self::ClientBytes,
        Self::BackendBytes,
        Self::Ended,
        Self::NoRoute,
        Self::Marked,
    ];

    /// A short word for counters and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::Wanted => "bytes_at_a_socket",
            Self::NoSocket => "no_socket",
            Self::NotEstablished => "not_established",
            Self::ClientBytes => "client_bytes",
            Self::BackendBytes => "backend_bytes",
            Self::Ended => "ended",
            Self::NoRoute => "no_route",
            Self::Marked => "ecn",
        }
    }
}

impl SpliceState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Armed,
        Self::Switching,
        Self::Spliced,
        Self::Fallback,
        Self::Closed,
        Self::ClientReset,
        Self::BackendReset,
    ];

    /// Whether packets are translated.
    pub const fn is_translated(self) -> bool {
        matches!(self, Self::Spliced | Self::Closed | Self::ClientReset | Self::BackendReset)
    }

    /// Whether the flow has ended, and only what is repeated of that is translated.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::ClientReset | Self::BackendReset)
    }

    /// A short word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Switching => "switching",
            Self::Spliced => "spliced",
            Self::Fallback => "fallback",
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
        }
    }
}
