//! The way out: routing as for what this host itself sends, so forwarding need not be enabled for the
//! interfaces that packets come by.

use core::ptr;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_redirect,
    bpf_redirect_neigh, bpf_redirect_peer,
};
use snisplit_common::abi::packet::{Tuple, XMIT_PEER};

use super::action::TC_ACT_REDIRECT;
use super::frame::Frame;
use super::headers::{Family, IPPROTO_TCP, addr_words, from_v4_mapped};
use super::maps::INTERFACES;

/// linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback interface has this number in every network namespace (net/core/dev.c).
const LOOPBACK_IFINDEX: u32 = 1;

/// Where a packet leaves.
///
/// No function that is not inlined may have an enum with data in its signature, an `Option` included:
/// the type information that some compilers make of one is none that the kernel takes.
#[repr(C)]
pub(super) struct NextHop {
    pub(super) ifindex: u32,
    /// How to leave by that interface (`LINKS`); 0 if the programs are not attached to it.
    pub(super) xmit: u32,
    /// Whether the addresses are known.
    pub(super) is_resolved: u32,
    /// Most bytes behind the Ethernet header.
    pub(super) mtu: u32,
    /// Destination and source of the frame.
    pub(super) eth_addrs: [u32; 3],
    /// When this was asked for, of the coarse clock: now, that is, but for [`JIFFIES`].
    pub(super) now_ns: u64,
}

/// A way, and of which peer and which address of ours.
#[repr(C)]
struct RouteCacheEntry {
    /// When it is of, in [`JIFFIES`]. 0 if it is to be asked for again.
    epoch: u64,
    family: Family,
    peer: [u32; 4],
    local: [u32; 4],
    next_hop: NextHop,
    /// Here, for it is too much for the stack.
    fib_params: bpf_fib_lookup,
}

const ROUTE_CACHE_LEN: usize = 64;
/// How many of the kernel's ticks a way is good for: 4 to 40 ms (CONFIG_HZ).
const ROUTE_CACHE_JIFFIES: u64 = 4;

/// This CPU's ways of now. Looking one up takes a good part of a packet's time.
#[repr(C)]
pub(super) struct RouteCache([RouteCacheEntry; ROUTE_CACHE_LEN]);

impl RouteCache {
    /// The way to whoever's packets arrive by the tuple `to`. `None`: there is none. It holds until the
    /// next one is asked for.
    #[inline(always)]
    pub(super) fn get(
        &mut self,
        ctx: &impl Frame,
        family: Family,
        tuple: &Tuple,
    ) -> Option<&NextHop> {
        let entry = self.0.get_mut(cache_index(tuple))?;
        // SAFETY: takes nothing and touches nothing; the kernel makes a load of it.
        let epoch = unsafe { bpf_jiffies64() } / ROUTE_CACHE_JIFFIES;
        let is_found =
            entry.matches(epoch, family, tuple) || refresh(ctx, family, tuple, entry, epoch);
        is_found.then_some(&entry.next_hop)
    }
}

/// Where a way is remembered.
#[inline(always)]
fn cache_index(tuple: &Tuple) -> usize {
    let [_, _, prefix, peer] = addr_words(&tuple.source);
    let mixed = prefix ^ peer.rotate_left(16) ^ from_v4_mapped(&tuple.destination);
    (mixed.wrapping_mul(0x9e37_79b1) >> 26) as usize
}

impl RouteCacheEntry {
    #[inline(always)]
    fn matches(&self, epoch: u64, family: Family, tuple: &Tuple) -> bool {
        let (peer, local) = (addr_words(&tuple.source), addr_words(&tuple.destination));
        // One of IPv4 has one word of its own.
        self.epoch == epoch
            && self.family == family
            && (self.peer[3], self.local[3]) == (peer[3], local[3])
            && (family == Family::V4 || self.peer == peer && self.local == local)
    }
}

#[inline(never)]
fn refresh(
    ctx: &impl Frame,
    family: Family,
    tuple: &Tuple,
    entry: &mut RouteCacheEntry,
    epoch: u64,
) -> bool {
    entry.epoch = 0;
    if !query_fib(ctx, family, tuple, entry) {
        return false;
    }
    let next_hop = &mut entry.next_hop;
    // SAFETY: takes nothing and touches nothing.
    next_hop.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: an entry is a number.
    next_hop.xmit = unsafe { INTERFACES.get(next_hop.ifindex) }.copied().unwrap_or_default();
    // What is not resolved is asked for again: the kernel finds the neighbour meanwhile.
    if next_hop.is_resolved != 0 && next_hop.xmit != 0 {
        [entry.peer, entry.local] = [addr_words(&tuple.source), addr_words(&tuple.destination)];
        (entry.family, entry.epoch) = (family, epoch);
    }
    true
}

#[inline(always)]
fn query_fib(ctx: &impl Frame, family: Family, tuple: &Tuple, entry: &mut RouteCacheEntry) -> bool {
    let RouteCacheEntry { next_hop, fib_params: params, .. } = entry;
    // All that the helper reads; the last answer is still in it.
    (params.sport, params.dport, params.l4_protocol) = (0, 0, IPPROTO_TCP);
    params.ifindex = LOOPBACK_IFINDEX;
    params.__bindgen_anon_1.tot_len = 0;
    match family {
        Family::V4 => {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = 0;
            params.__bindgen_anon_3.ipv4_src = from_v4_mapped(&tuple.destination);
            params.__bindgen_anon_4.ipv4_dst = from_v4_mapped(&tuple.source);
        }
        Family::V6 => {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = 0;
            params.__bindgen_anon_3.ipv6_src = addr_words(&tuple.destination);
            params.__bindgen_anon_4.ipv6_dst = addr_words(&tuple.source);
        }
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper reads and writes `size` bytes of it.
    let result = unsafe { fib_lookup(ctx.as_ptr(), &raw mut *params, size, 0) };
    next_hop.ifindex = params.ifindex;
    next_hop.is_resolved = (result as u32 == BPF_FIB_LKUP_RET_SUCCESS).into();
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (params.dmac, params.smac);
    next_hop.eth_addrs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    // SAFETY: the helper writes it where the total length was.
    next_hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result }.into();
    matches!(result as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// Sends the packet that way, its Ethernet header written; the answer is what the program returns.
#[inline(always)]
pub(super) fn redirect(next_hop: &NextHop) -> i32 {
    // SAFETY: these take numbers; without parameters the last one asks for the way once more, and then for
    // the neighbour.
    unsafe {
        match (next_hop.is_resolved, next_hop.xmit) {
            (1, XMIT_PEER) => bpf_redirect_peer(next_hop.ifindex, 0),
            (1, _) => bpf_redirect(next_hop.ifindex, 0),
            _ => bpf_redirect_neigh(next_hop.ifindex, ptr::null_mut(), 0, 0),
        };
    }
    TC_ACT_REDIRECT
}
