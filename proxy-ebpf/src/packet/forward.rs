//! The way out: routing as for what this host itself sends, so forwarding need not be enabled for the
//! interfaces that packets come by.

use core::ptr;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_redirect,
    bpf_redirect_neigh, bpf_redirect_peer,
};
use snisplit_common::abi::packet::{Tuple, XMIT_PEER};

use crate::frame::Frame;
use crate::headers::{Family, IPPROTO_TCP, unmapped, words};
use crate::maps::LINKS;

/// linux/socket.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// The loopback interface has this number in every network namespace (net/core/dev.c).
const LOOPBACK: u32 = 1;
const TC_ACT_REDIRECT: i32 = 7;

/// Where a packet leaves.
///
/// No function that is not inlined may have an enum with data in its signature, an `Option` included:
/// the type information that some compilers make of one is none that the kernel takes.
#[repr(C)]
pub(crate) struct Route {
    pub(crate) interface: u32,
    /// How to leave by that interface (`LINKS`); 0 if the programs are not attached to it.
    pub(crate) way_out: u32,
    /// Whether the addresses are known.
    pub(crate) is_resolved: u32,
    /// Most bytes behind the Ethernet header.
    pub(crate) mtu: u32,
    /// Destination and source of the frame.
    pub(crate) ethernet: [u32; 3],
    /// When this was asked for, of the coarse clock: now, that is, but for [`JIFFIES`].
    pub(crate) now: u64,
}

/// A way, and of which peer and which address of ours.
#[repr(C)]
struct Known {
    /// When it is of, in [`JIFFIES`]. 0 if it is to be asked for again.
    time: u64,
    family: Family,
    peer: [u32; 4],
    us: [u32; 4],
    route: Route,
    /// Here, for it is too much for the stack.
    question: bpf_fib_lookup,
}

const KNOWN_MAX: usize = 64;
/// How many of the kernel's ticks a way is good for: 4 to 40 ms (CONFIG_HZ).
const JIFFIES: u64 = 4;

/// This CPU's ways of now. Looking one up takes a good part of a packet's time.
#[repr(C)]
pub(crate) struct Ways([Known; KNOWN_MAX]);

impl Ways {
    /// The way to whoever's packets arrive by the tuple `to`. `None`: there is none. It holds until the
    /// next one is asked for.
    #[inline(always)]
    pub(crate) fn to(&mut self, ctx: &impl Frame, family: Family, to: &Tuple) -> Option<&Route> {
        let known = self.0.get_mut(slot(to))?;
        // SAFETY: takes nothing and touches nothing; the kernel makes a load of it.
        let time = unsafe { bpf_jiffies64() } / JIFFIES;
        let is_found = known.is_of(time, family, to) || ask(ctx, family, to, known, time);
        is_found.then_some(&known.route)
    }
}

/// Where a way is remembered.
#[inline(always)]
fn slot(to: &Tuple) -> usize {
    let [_, _, prefix, peer] = words(&to.source);
    let mixed = prefix ^ peer.rotate_left(16) ^ unmapped(&to.destination);
    (mixed.wrapping_mul(0x9e37_79b1) >> 26) as usize
}

impl Known {
    #[inline(always)]
    fn is_of(&self, time: u64, family: Family, to: &Tuple) -> bool {
        let (peer, us) = (words(&to.source), words(&to.destination));
        // One of IPv4 has one word of its own.
        self.time == time
            && self.family == family
            && (self.peer[3], self.us[3]) == (peer[3], us[3])
            && (family == Family::V4 || self.peer == peer && self.us == us)
    }
}

#[inline(never)]
fn ask(ctx: &impl Frame, family: Family, to: &Tuple, known: &mut Known, time: u64) -> bool {
    known.time = 0;
    if !look_up(ctx, family, to, known) {
        return false;
    }
    let route = &mut known.route;
    // SAFETY: takes nothing and touches nothing.
    route.now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: an entry is a number.
    route.way_out = unsafe { LINKS.get(route.interface) }.copied().unwrap_or_default();
    // What is not resolved is asked for again: the kernel finds the neighbour meanwhile.
    if route.is_resolved != 0 && route.way_out != 0 {
        [known.peer, known.us] = [words(&to.source), words(&to.destination)];
        (known.family, known.time) = (family, time);
    }
    true
}

#[inline(always)]
fn look_up(ctx: &impl Frame, family: Family, to: &Tuple, known: &mut Known) -> bool {
    let Known { route, question, .. } = known;
    // All that the helper reads; the last answer is still in it.
    (question.sport, question.dport, question.l4_protocol) = (0, 0, IPPROTO_TCP);
    question.ifindex = LOOPBACK;
    question.__bindgen_anon_1.tot_len = 0;
    match family {
        Family::V4 => {
            question.family = AF_INET;
            question.__bindgen_anon_2.tos = 0;
            question.__bindgen_anon_3.ipv4_src = unmapped(&to.destination);
            question.__bindgen_anon_4.ipv4_dst = unmapped(&to.source);
        }
        Family::V6 => {
            question.family = AF_INET6;
            question.__bindgen_anon_2.flowinfo = 0;
            question.__bindgen_anon_3.ipv6_src = words(&to.destination);
            question.__bindgen_anon_4.ipv6_dst = words(&to.source);
        }
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper reads and writes `size` bytes of it.
    let found = unsafe { fib_lookup(ctx.as_ptr(), &raw mut *question, size, 0) };
    route.interface = question.ifindex;
    route.is_resolved = (found as u32 == BPF_FIB_LKUP_RET_SUCCESS).into();
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (question.dmac, question.smac);
    route.ethernet = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    // SAFETY: the helper writes it where the total length was.
    route.mtu = unsafe { question.__bindgen_anon_1.mtu_result }.into();
    matches!(found as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
}

/// Sends the packet that way, its Ethernet header written; the answer is what the program returns.
#[inline(always)]
pub(crate) fn send(route: &Route) -> i32 {
    // SAFETY: these take numbers; without parameters the last one asks for the way once more, and then for
    // the neighbour.
    unsafe {
        match (route.is_resolved, route.way_out) {
            (1, XMIT_PEER) => bpf_redirect_peer(route.interface, 0),
            (1, _) => bpf_redirect(route.interface, 0),
            _ => bpf_redirect_neigh(route.interface, ptr::null_mut(), 0, 0),
        };
    }
    TC_ACT_REDIRECT
}
