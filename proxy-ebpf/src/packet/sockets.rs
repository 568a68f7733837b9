//! What the kernel's two sockets of a flow hold, read under the gag.

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
    SK_STATE_OFFSET "Of `skc_state` in a `sock_common`.";
    RCV_NXT_OFFSET "Of `rcv_nxt` in a `tcp_sock`: behind what arrived in order.";
    COPIED_SEQ_OFFSET "Of `copied_seq`: the beginning of what was not read.";
    SND_UNA_OFFSET "Of `snd_una`: the beginning of what was not acknowledged.";
    WRITE_SEQ_OFFSET "Of `write_seq`: behind what was handed to it.";
    BYTES_ACKED_OFFSET "Of `bytes_acked`, of which the low half is enough.";
    OUT_OF_ORDER_OFFSET "Of the root of `out_of_order_queue`.";
    TS_RECENT_OFFSET "Of the last timestamp that arrived.";
    ECN_FLAGS_OFFSET "Of what is known of marks of congestion.";
    TS_OFFSET_OFFSET "Of what is added to the clock in timestamps that are sent.";
}

/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
/// `TCP_ECN_MODE_RFC3168` and `TCP_ECN_SEEN`, include/net/tcp.h: that, and no mark on its way.
const ECN_OK_ONLY: u8 = 1 | 8;
/// `BPF_F_CURRENT_NETNS`, include/uapi/linux/bpf.h: -1 in 32 bits.
const CURRENT_NETNS: u64 = 0xffff_ffff_ffff_ffff;

/// Numbers of a socket.
#[derive(Clone, Copy)]
pub(super) struct SockSnapshot {
    pub(super) is_established: bool,
    pub(super) rcv_nxt: u32,
    pub(super) copied_seq: u32,
    pub(super) snd_una: u32,
    pub(super) write_seq: u32,
    pub(super) bytes_acked: u32,
    pub(super) is_ofo_queue_empty: bool,
    pub(super) is_ecn_idle: bool,
    pub(super) ts_recent: u32,
    pub(super) ts_offset: u32,
}

/// `struct bpf_sock_tuple` of either family. Not on the stack, for it is too much for that.
pub(super) struct SockTuple([u32; 9]);

impl SockTuple {
    /// As the kernel takes it: addresses and ports, which are behind whatever addresses there are. And how
    /// many bytes that is.
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

/// Reads the socket that a tuple's packets go to.
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
    // SAFETY: the look-up gave a referenced socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
    let snapshot = if tcp.is_null() { None } else { read_tcp_sock(tcp.cast()) };
    // SAFETY: the reference that the look-up took, given back once.
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
        // Before `rcv_nxt`, behind which it never is: equal ones were equal when that was read.
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
    // SAFETY: the helper writes as much as `T` takes, and checks the address that it reads.
    let failed = unsafe {
        bpf_probe_read_kernel(to, size_of::<T>() as u32, tcp.byte_add(offset as usize).cast_const())
    };
    (failed == 0).then_some(())
}
