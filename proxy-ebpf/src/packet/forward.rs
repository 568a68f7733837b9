//! The way out: routing as for what this host itself sends, so forwarding need not be enabled for the
//! interfaces that packets come by.

use core::{mem, ptr};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_redirect_neigh,
};
use aya_ebpf::programs::TcContext;
use snisplit_common::abi::packet::Tuple;

use crate::headers::{Family, unmapped, words};

/// linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback interface has this number in every network namespace (net/core/dev.c).
const LOOPBACK: u32 = 1;
const TC_ACT_REDIRECT: i32 = 7;

/// Where a packet leaves.
pub(crate) struct Route {
    pub(crate) interface: u32,
    /// Destination and source of the frame, if they are known.
    ethernet: Option<[[u8; 6]; 2]>,
}

/// The way to whoever's packets arrive by the tuple `to`. `None`: there is none.
#[inline(never)]
pub(crate) fn route(ctx: &TcContext, family: Family, to: &Tuple) -> Option<Route> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut params: bpf_fib_lookup = unsafe { mem::zeroed() };
    params.l4_protocol = 6;
    params.ifindex = LOOPBACK;
    match family {
        Family::V4 => {
            params.family = AF_INET;
            params.__bindgen_anon_3.ipv4_src = unmapped(&to.destination);
            params.__bindgen_anon_4.ipv4_dst = unmapped(&to.source);
        }
        Family::V6 => {
            params.family = AF_INET6;
            params.__bindgen_anon_3.ipv6_src = words(&to.destination);
            params.__bindgen_anon_4.ipv6_dst = words(&to.source);
        }
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper reads and writes `size` bytes of `params`.
    let found = unsafe { fib_lookup(ctx.as_ptr(), &raw mut params, size, 0) };
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            Some(Route { interface: params.ifindex, ethernet: Some([params.dmac, params.smac]) })
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => Some(Route { interface: params.ifindex, ethernet: None }),
        _ => None,
    }
}

/// Sends the packet that way; the answer is what the program returns.
#[inline(always)]
pub(crate) fn send(ctx: &TcContext, route: &Route) -> Option<i32> {
    match &route.ethernet {
        Some(addresses) => {
            ctx.store(0, addresses, 0).ok()?;
            // SAFETY: takes numbers.
            unsafe { bpf_redirect(route.interface, 0) };
        }
        // SAFETY: without parameters it asks for the way once more, and then for the neighbour.
        None => unsafe {
            bpf_redirect_neigh(route.interface, ptr::null_mut(), 0, 0);
        },
    }
    Some(TC_ACT_REDIRECT)
}
