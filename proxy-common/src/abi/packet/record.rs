//! What is known of a flow.

use core::mem::offset_of;

use super::super::Direction;

/// A flow of the packet engine. What all its packets read comes first; what those of each peer write is apart from
/// that and from each other, for two CPUs that forward the two directions would take each other's cache lines
/// away, and a processor fetches the next line too, and the other one of a pair (L1 next line and L2 spatial
/// prefetchers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// the flow went on while this was not written ([`PeerState::untracked`]).
    pub valid_to: u32,
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

const _: () = assert!(size_of::<Translation>() == 24 && size_of::<Tuple>() == 36);
const _: () = assert!(size_of::<PeerState>() == 64 && size_of::<TupleEntry>() == 16);
const _: () = assert!(offset_of!(FlowEntry, client_state) == 192 && size_of::<FlowEntry>() == 384);
const _: () = assert!(offset_of!(FlowEntry, backend_state) == 320);
