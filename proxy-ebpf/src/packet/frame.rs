//! A frame as a hook has it: in a socket buffer (TC), or as the driver has received it (XDP).

use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_PSEUDO_HDR;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_xdp_load_bytes,
    bpf_xdp_store_bytes,
};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::sum::{Change, Sum, is_same};

pub(crate) trait Frame: EbpfContext {
    /// Copies from the frame.
    ///
    /// # Safety
    ///
    /// There is room for `length` bytes.
    unsafe fn copy_out(&self, at: u32, to: *mut c_void, length: u32) -> bool;

    /// Copies into the frame.
    ///
    /// # Safety
    ///
    /// There are `length` bytes.
    unsafe fn copy_in(&self, at: u32, from: *const c_void, length: u32) -> bool;

    /// Where the bytes are that can be read without a call.
    fn linear(&self) -> Range<usize>;

    /// Makes that these are so many, if it can.
    fn pull(&self, length: u32) -> bool;

    /// What is in it (`h_proto`); 0 if a VLAN's tag was taken off.
    fn protocol(&self) -> u16;

    /// Bytes; of what a driver has received, those in its first buffer.
    fn length(&self) -> u32;

    /// Other addresses in the checksum of TCP, which was `old`.
    fn readdress(&self, at: u32, old: u16, addresses: Change) -> Option<Sum>;

    /// What else has changed, if the checksum has more than addresses in it.
    fn amend(&self, at: u32, change: Change) -> Option<()>;

    /// Adds to the sum of the whole packet, if a NIC has made one (`CHECKSUM_COMPLETE`).
    fn sum_up(&self, change: Change);

    /// Copies from a place that is known when this is compiled. It makes no call where it can: whatever
    /// returns costs a packet time of its own on processors whose returns the kernel distrusts
    /// (Documentation/admin-guide/hw-vuln/srso.rst).
    #[inline(always)]
    fn peek<T: Copy>(&self, at: u32) -> Option<T> {
        let behind = at + size_of::<T>() as u32;
        let mut linear = self.linear();
        if linear.start + behind as usize > linear.end {
            if !self.pull(behind) {
                return None;
            }
            linear = self.linear();
            if linear.start + behind as usize > linear.end {
                return None;
            }
        }
        // SAFETY: it is there, and is one of the plain structures of headers. The verifier refuses what is
        // not aligned enough for the machine.
        Some(unsafe { ((linear.start + at as usize) as *const T).read() })
    }

    /// Writes at a place that was read by [`Frame::peek`]. For a program that does this the kernel sees to
    /// it that nobody else has the bytes (`bpf_unclone_prologue`, net/core/filter.c).
    #[inline(always)]
    fn put<T>(&self, at: u32, value: T) -> Option<()> {
        let linear = self.linear();
        if linear.start + at as usize + size_of::<T>() > linear.end {
            return None;
        }
        // SAFETY: it is there. The verifier refuses what is not aligned enough for the machine.
        unsafe { ((linear.start + at as usize) as *mut T).write(value) };
        Some(())
    }

    #[inline(always)]
    fn load<T>(&self, at: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: that is how large it is.
        let is_there =
            unsafe { self.copy_out(at, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
        // SAFETY: it was written, and is one of the plain structures of headers.
        is_there.then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn store<T>(&self, at: u32, value: &T) -> Option<()> {
        // SAFETY: that is how large it is.
        let is_stored =
            unsafe { self.copy_in(at, ptr::from_ref(value).cast(), size_of::<T>() as u32) };
        is_stored.then_some(())
    }
}

impl Frame for TcContext {
    #[inline(always)]
    fn linear(&self) -> Range<usize> {
        self.data()..self.data_end()
    }

    #[inline(always)]
    fn pull(&self, length: u32) -> bool {
        self.pull_data(length).is_ok()
    }

    #[inline(always)]
    unsafe fn copy_out(&self, at: u32, to: *mut c_void, length: u32) -> bool {
        // SAFETY: as our caller says.
        unsafe { bpf_skb_load_bytes(self.as_ptr().cast_const(), at, to, length) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_in(&self, at: u32, from: *const c_void, length: u32) -> bool {
        // SAFETY: as our caller says.
        unsafe { bpf_skb_store_bytes(self.skb.skb, at, from, length, 0) == 0 }
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        // SAFETY: the context that the kernel gave us.
        let skb = unsafe { &*self.skb.skb };
        // The interface that takes the tag off sees it again.
        if skb.vlan_present != 0 { 0 } else { u16::from_be(skb.protocol as u16) }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn readdress(&self, at: u32, old: u16, addresses: Change) -> Option<Sum> {
        // Whether more than the addresses is in it yet only the kernel knows (CHECKSUM_PARTIAL), and shows
        // by what it makes of it: it takes from a whole sum what it adds to one that is to be made.
        self.l4_csum_replace(at as usize, 0, addresses.folded(), BPF_F_PSEUDO_HDR.into()).ok()?;
        let now = self.peek(at)?;
        let is_whole = is_same(now, addresses.applied_to(old));
        Some(Sum { now, is_whole, is_in_doubt: is_same(addresses.half_word(), 0) })
    }

    #[inline(always)]
    fn amend(&self, at: u32, change: Change) -> Option<()> {
        self.l4_csum_replace(at as usize, 0, change.folded(), 0).ok()
    }

    #[inline(always)]
    fn sum_up(&self, change: Change) {
        // SAFETY: takes the context that the kernel gave us, and a number. It fails where there is no sum.
        let _there_is_none = unsafe { bpf_csum_update(self.skb.skb, change.folded() as u32) };
    }
}

impl Frame for XdpContext {
    #[inline(always)]
    fn linear(&self) -> Range<usize> {
        self.data()..self.data_end()
    }

    #[inline(always)]
    fn pull(&self, _length: u32) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn copy_out(&self, at: u32, to: *mut c_void, length: u32) -> bool {
        // SAFETY: as our caller says.
        unsafe { bpf_xdp_load_bytes(self.ctx, at, to, length) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_in(&self, at: u32, from: *const c_void, length: u32) -> bool {
        // SAFETY: as our caller says; the helper reads only.
        unsafe { bpf_xdp_store_bytes(self.ctx, at, from.cast_mut(), length) == 0 }
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        const H_PROTO: u32 = 12;
        Frame::load(self, H_PROTO).map_or(0, u16::from_be)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }

    #[inline(always)]
    fn readdress(&self, _at: u32, old: u16, addresses: Change) -> Option<Sum> {
        // What comes from a driver has its whole checksum.
        Some(Sum { now: addresses.applied_to(old), is_whole: true, is_in_doubt: false })
    }

    #[inline(always)]
    fn amend(&self, _at: u32, _change: Change) -> Option<()> {
        None
    }

    #[inline(always)]
    fn sum_up(&self, _change: Change) {}
}
