//! Snapshot of a socket of a flow, taken while the egress program suppresses what the socket sends.

use core::ptr;

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_tcp_sock,
};
use aya_ebpf::programs::TcContext;
use aya_ebpf::{EbpfContext as _, Global};
use snisplit_common::abi::packet::Tuple;

use super::headers::{Family, addr_words, from_v4_mapped};

macro_rules! offsets {
    ($($name:ident $what:literal;)*) => {
        $(
            #[doc = $what]
            #[unsafe(no_mangle)]
            static $name: Global<u32> = Global::new(0);
        )*
    };
}

offsets! {
    SK_STATE_OFFSET "Offset of `skc_state` in a `sock_common`.";
    RCV_NXT_OFFSET "Offset of `rcv_nxt` in a `tcp_sock`: the sequence number expected next.";
    COPIED_SEQ_OFFSET "Offset of `copied_seq`: the sequence number of the first unread byte.";
    SND_UNA_OFFSET "Offset of `snd_una`: the sequence number of the first unacknowledged byte.";
    WRITE_SEQ_OFFSET "Offset of `write_seq`: the sequence number after the last byte written to the socket.";
    BYTES_ACKED_OFFSET "Offset of `bytes_acked`, of which the program reads the low 32 bits.";
    OUT_OF_ORDER_OFFSET "Offset of the root of `out_of_order_queue`.";
    TS_RECENT_OFFSET "Offset of `ts_recent`: the last timestamp that arrived.";
    ECN_FLAGS_OFFSET "Offset of `ecn_flags`.";
    TS_OFFSET_OFFSET "Offset of `tsoffset`: what the socket adds to the clock in its timestamps.";
}

/// Value of include/net/tcp_states.h.
const TCP_ESTABLISHED: u8 = 1;
/// ECN flags of a socket that has no congestion mark to report or to answer: `TCP_ECN_MODE_RFC3168` and
/// `TCP_ECN_SEEN` (include/net/tcp.h).
const ECN_OK_ONLY: u8 = 1 | 8;
/// `BPF_F_CURRENT_NETNS` (include/uapi/linux/bpf.h).
const CURRENT_NETNS: u64 = 0xffff_ffff_ffff_ffff;

/// Fields of a socket.
#[derive(Clone, Copy)]
pub(super) struct SockSnapshot {
    pub(super) is_established: bool,
    pub(super) rcv_nxt: u32,
    pub(super) copied_seq: u32,
    pub(super) snd_una: u32,
    pub(super) write_seq: u32,
    pub(super) bytes_acked: u32,
    /// Whether no data has arrived out of order.
    pub(super) is_ofo_queue_empty: bool,
    /// Whether no congestion mark waits for a report or an answer, and the socket does not use AccECN.
    pub(super) is_ecn_idle: bool,
    pub(super) ts_recent: u32,
    pub(super) ts_offset: u32,
}

/// `struct bpf_sock_tuple` of IPv4 or IPv6. It is too large for the stack.
pub(super) struct SockTuple([u32; 9]);

impl SockTuple {
    /// Stores addresses and ports in the layout of the kernel, and returns the size in bytes.
    #[inline(always)]
    fn fill(&mut self, family: Family, tuple: &Tuple) -> u32 {
        let Tuple { source, destination, source_port, destination_port } = tuple;
        let ([a, b], [c, d]) = (source_port.to_be_bytes(), destination_port.to_be_bytes());
        let ports = u32::from_ne_bytes([a, b, c, d]);
        match family {
            Family::V4 => {
                [self.0[0], self.0[1], self.0[2]] =
                    [from_v4_mapped(source), from_v4_mapped(destination), ports];
                12
            }
            Family::V6 => {
                let ([a, b, c, d], [e, f, g, h]) = (addr_words(source), addr_words(destination));
                self.0 = [a, b, c, d, e, f, g, h, ports];
                36
            }
        }
    }
}

/// Reads the socket that receives the packets of a tuple. `None`: it does not exist or is not readable.
#[inline(always)]
pub(super) fn snapshot(
    ctx: &TcContext,
    sock_tuple: &mut SockTuple,
    family: Family,
    tuple: &Tuple,
) -> Option<SockSnapshot> {
    let size = sock_tuple.fill(family, tuple);
    let key = ptr::from_mut(sock_tuple).cast();
    // SAFETY: the helper reads `size` bytes of the key.
    let socket = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), key, size, CURRENT_NETNS, 0) };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the look-up has returned a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
    let snapshot = if tcp.is_null() { None } else { read_tcp_sock(tcp.cast()) };
    // SAFETY: this releases the reference of the look-up, once.
    unsafe { bpf_sk_release(socket.cast()) };
    snapshot
}

#[inline(always)]
fn read_tcp_sock(tcp: *mut c_void) -> Option<SockSnapshot> {
    let mut state = 0_u8;
    read_kernel(tcp, SK_STATE_OFFSET.load(), &mut state)?;
    let mut ecn = 0_u8;
    read_kernel(tcp, ECN_FLAGS_OFFSET.load(), &mut ecn)?;
    let mut ofo_root = 0_u64;
    read_kernel(tcp, OUT_OF_ORDER_OFFSET.load(), &mut ofo_root)?;
    let read_u32 = |offset| {
        let mut value = 0_u32;
        read_kernel(tcp, offset, &mut value)?;
        Some(value)
    };
    Some(SockSnapshot {
        is_established: state == TCP_ESTABLISHED,
        // Read before `rcv_nxt`, which is never smaller. If both are equal here, they were equal when the
        // program read `rcv_nxt`.
        copied_seq: read_u32(COPIED_SEQ_OFFSET.load())?,
        rcv_nxt: read_u32(RCV_NXT_OFFSET.load())?,
        snd_una: read_u32(SND_UNA_OFFSET.load())?,
        write_seq: read_u32(WRITE_SEQ_OFFSET.load())?,
        bytes_acked: read_u32(BYTES_ACKED_OFFSET.load())?,
        is_ofo_queue_empty: ofo_root == 0,
        is_ecn_idle: ecn & !ECN_OK_ONLY == 0,
        ts_recent: read_u32(TS_RECENT_OFFSET.load())?,
        ts_offset: read_u32(TS_OFFSET_OFFSET.load())?,
    })
}

#[inline(always)]
fn read_kernel<T>(tcp: *mut c_void, offset: u32, to: &mut T) -> Option<()> {
    let to = ptr::from_mut(to).cast();
    // SAFETY: the helper writes the size of `T`, and checks the address that it reads.
    let failed = unsafe {
        bpf_probe_read_kernel(to, size_of::<T>() as u32, tcp.byte_add(offset as usize).cast_const())
    };
    (failed == 0).then_some(())
}
