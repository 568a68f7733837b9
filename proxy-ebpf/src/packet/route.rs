//! Routing of translated packets.
//!
//! The look-up is the one for packets that this host sends. So the interfaces that packets arrive at need
//! no forwarding.

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

/// Address families of linux/socket.h.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Index of the loopback interface in each network namespace (net/core/dev.c).
const LOOPBACK_IFINDEX: u32 = 1;

/// Where a packet leaves this host.
///
/// Functions that are not inlined must not have an enum with data in their signatures, such as `Option`.
/// Some compilers emit type information (BTF) for these that the kernel rejects.
#[repr(C)]
pub(super) struct NextHop {
    /// Index of the interface.
    pub(super) ifindex: u32,
    /// How to transmit: a value of [`INTERFACES`], or 0 if the programs are not attached to the interface.
    pub(super) xmit: u32,
    /// 1 if the Ethernet addresses are known.
    pub(super) is_resolved: u32,
    /// MTU in bytes.
    pub(super) mtu: u32,
    /// Destination and source address of the frame.
    pub(super) eth_addrs: [u32; 3],
    /// Time of the look-up in nanoseconds of `CLOCK_MONOTONIC_COARSE`. It is at most
    /// [`ROUTE_CACHE_JIFFIES`] old.
    pub(super) now_ns: u64,
}

/// Cached route to a peer from an address of this host.
#[repr(C)]
struct RouteCacheEntry {
    /// Time of the look-up in units of [`ROUTE_CACHE_JIFFIES`]. 0: the entry is invalid.
    epoch: u64,
    family: Family,
    peer: [u32; 4],
    local: [u32; 4],
    next_hop: NextHop,
    /// Arguments of the helper, which are too large for the stack.
    fib_params: bpf_fib_lookup,
}

const ROUTE_CACHE_LEN: usize = 64;
/// Lifetime of a cached route in jiffies: 4 to 40 ms, depending on CONFIG_HZ.
const ROUTE_CACHE_JIFFIES: u64 = 4;

/// Cache of this CPU's routes. A route look-up is a large part of the cost of a packet.
#[repr(C)]
pub(super) struct RouteCache([RouteCacheEntry; ROUTE_CACHE_LEN]);

impl RouteCache {
    /// Returns the route to the peer whose packets arrive with this tuple. `None`: there is no route.
    #[inline(always)]
    pub(super) fn get(
        &mut self,
        ctx: &impl Frame,
        family: Family,
        tuple: &Tuple,
    ) -> Option<&NextHop> {
        let entry = self.0.get_mut(cache_index(tuple))?;
        // SAFETY: the helper has no arguments and no side effects. The kernel replaces the call by a load.
        let epoch = unsafe { bpf_jiffies64() } / ROUTE_CACHE_JIFFIES;
        let is_found =
            entry.matches(epoch, family, tuple) || refresh(ctx, family, tuple, entry, epoch);
        is_found.then_some(&entry.next_hop)
    }
}

/// Returns the index of the cache entry for a tuple.
#[inline(always)]
fn cache_index(tuple: &Tuple) -> usize {
    let [_, _, prefix, peer] = addr_words(&tuple.source);
    let mixed = prefix ^ peer.rotate_left(16) ^ from_v4_mapped(&tuple.destination);
    (mixed.wrapping_mul(0x9e37_79b1) >> 26) as usize
}

impl RouteCacheEntry {
    /// Whether this is a valid route for a tuple.
    #[inline(always)]
    fn matches(&self, epoch: u64, family: Family, tuple: &Tuple) -> bool {
        let (peer, local) = (addr_words(&tuple.source), addr_words(&tuple.destination));
        // IPv4 addresses differ in one word only.
        self.epoch == epoch
            && self.family == family
            && (self.peer[3], self.local[3]) == (peer[3], local[3])
            && (family == Family::V4 || self.peer == peer && self.local == local)
    }
}

/// Looks a route up and stores it in a cache entry. Returns whether there is a route.
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
    // SAFETY: the helper has no arguments and no side effects.
    next_hop.now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: only the agent writes the element, and each value is valid.
    next_hop.xmit = unsafe { INTERFACES.get(next_hop.ifindex) }.copied().unwrap_or_default();
    // An unresolved neighbour is not cached: the kernel resolves it in the meantime.
    if next_hop.is_resolved != 0 && next_hop.xmit != 0 {
        [entry.peer, entry.local] = [addr_words(&tuple.source), addr_words(&tuple.destination)];
        (entry.family, entry.epoch) = (family, epoch);
    }
    true
}

/// Calls the helper for a route look-up, and returns whether there is a route.
#[inline(always)]
fn query_fib(ctx: &impl Frame, family: Family, tuple: &Tuple, entry: &mut RouteCacheEntry) -> bool {
    let RouteCacheEntry { next_hop, fib_params: params, .. } = entry;
    // These are all fields that the helper reads. The entry holds the result of the previous call.
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
    // SAFETY: the helper reads and writes `size` bytes.
    let result = unsafe { fib_lookup(ctx.as_ptr(), &raw mut *params, size, 0) };
    next_hop.ifindex = params.ifindex;
    next_hop.is_resolved = (result as u32 == BPF_FIB_LKUP_RET_SUCCESS).into();
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (params.dmac, params.smac);
    next_hop.eth_addrs = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    // SAFETY: the helper writes this member of the union.
    next_hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result }.into();
    matches!(result as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// Redirects a packet whose Ethernet header is complete, and returns the action for the program.
#[inline(always)]
pub(super) fn redirect(next_hop: &NextHop) -> i32 {
    // SAFETY: the helpers have no pointers to check. Without parameters, the last one looks up the route
    // again, and resolves the neighbour.
    unsafe {
        match (next_hop.is_resolved, next_hop.xmit) {
            (1, XMIT_PEER) => bpf_redirect_peer(next_hop.ifindex, 0),
            (1, _) => bpf_redirect(next_hop.ifindex, 0),
            _ => bpf_redirect_neigh(next_hop.ifindex, ptr::null_mut(), 0, 0),
        };
    }
    TC_ACT_REDIRECT
}
