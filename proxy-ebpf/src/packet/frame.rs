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

use super::checksum::{Checksum, ChecksumDiff, is_equal_sum};

pub(super) trait Frame: EbpfContext {
    /// Copies from the frame.
    ///
    /// # Safety
    ///
    /// There is room for `length` bytes.
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, len: u32) -> bool;

    /// Copies into the frame.
    ///
    /// # Safety
    ///
    /// There are `length` bytes.
    unsafe fn copy_in(&self, offset: u32, from: *const c_void, len: u32) -> bool;

    /// Where the bytes are that can be read without a call.
    fn linear_range(&self) -> Range<usize>;

    /// Makes that these are so many, if it can.
    fn pull(&self, len: u32) -> bool;

    /// What is in it (`h_proto`); 0 if a VLAN's tag was taken off.
    fn protocol(&self) -> u16;

    /// Bytes; of what a driver has received, those in its first buffer.
    fn length(&self) -> u32;

    /// Other addresses in the checksum of TCP.
    fn csum_replace_pseudo(&self, offset: u32, addresses: ChecksumDiff) -> Option<()>;

    /// What [`Frame::csum_replace_pseudo`] has made of the checksum, which was `old` and is `now`.
    fn csum_replaced(&self, old: u16, now: u16, addresses: ChecksumDiff) -> Checksum;

    /// What else has changed, if the checksum has more than addresses in it.
    fn csum_replace(&self, offset: u32, change: ChecksumDiff) -> Option<()>;

    /// Adds to the sum of the whole packet, if a NIC has made one (`CHECKSUM_COMPLETE`).
    fn csum_update(&self, change: ChecksumDiff);

    /// So many bytes of the front, if they can be read without a call: whatever returns costs a packet time
    /// of its own on processors whose returns the kernel distrusts
    /// (Documentation/admin-guide/hw-vuln/srso.rst).
    #[inline(always)]
    fn linear(&self, len: u32) -> Option<LinearData> {
        let Range { start, end } = self.linear_range();
        (start + len as usize <= end).then_some(LinearData(start))
    }

    /// The same, and makes that they can be if it has to.
    #[inline(always)]
    fn pull_linear(&self, len: u32) -> Option<LinearData> {
        match self.linear(len) {
            None if self.pull(len) => self.linear(len),
            linear => linear,
        }
    }

    /// Copies from a place that is known when this is compiled, without a call where it can.
    #[inline(always)]
    fn peek<T: Copy>(&self, offset: u32) -> Option<T> {
        self.pull_linear(offset + size_of::<T>() as u32).map(|linear| linear.get(offset))
    }

    #[inline(always)]
    fn load<T>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: that is how large it is.
        let is_there =
            unsafe { self.copy_out(offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
        // SAFETY: it was written, and is one of the plain structures of headers.
        is_there.then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn store<T>(&self, offset: u32, value: &T) -> Option<()> {
        // SAFETY: that is how large it is.
        let is_stored =
            unsafe { self.copy_in(offset, ptr::from_ref(value).cast(), size_of::<T>() as u32) };
        is_stored.then_some(())
    }
}

/// The front of a frame, until a helper has changed it. The verifier refuses a program that goes beyond the
/// length that was asked for, or reads what is not aligned enough for the machine.
pub(super) struct LinearData(usize);

impl LinearData {
    #[inline(always)]
    pub(super) fn get<T: Copy>(&self, offset: u32) -> T {
        // SAFETY: it is there, and is one of the plain structures of headers.
        unsafe { ((self.0 + offset as usize) as *const T).read() }
    }

    /// For a program that does this the kernel sees to it that nobody else has the bytes
    /// (`bpf_unclone_prologue`, net/core/filter.c).
    #[inline(always)]
    pub(super) fn set<T>(&mut self, offset: u32, value: T) {
        // SAFETY: as above.
        unsafe { ((self.0 + offset as usize) as *mut T).write(value) };
    }
}

impl Frame for TcContext {
    #[inline(always)]
    fn linear_range(&self) -> Range<usize> {
        self.data()..self.data_end()
    }

    #[inline(always)]
    fn pull(&self, len: u32) -> bool {
        self.pull_data(len).is_ok()
    }

    #[inline(always)]
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: as our caller says.
        unsafe { bpf_skb_load_bytes(self.as_ptr().cast_const(), offset, to, len) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_in(&self, offset: u32, from: *const c_void, len: u32) -> bool {
        // SAFETY: as our caller says.
        unsafe { bpf_skb_store_bytes(self.skb.skb, offset, from, len, 0) == 0 }
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
    fn csum_replace_pseudo(&self, offset: u32, addresses: ChecksumDiff) -> Option<()> {
        self.l4_csum_replace(offset as usize, 0, addresses.fold32(), BPF_F_PSEUDO_HDR.into()).ok()
    }

    #[inline(always)]
    fn csum_replaced(&self, old: u16, now: u16, addresses: ChecksumDiff) -> Checksum {
        // Whether more than the addresses is in it yet only the kernel knows (CHECKSUM_PARTIAL), and shows
        // by what it makes of it: it takes from a whole sum what it adds to one that is to be made.
        let is_complete = is_equal_sum(addresses.add_to_sum(now), old);
        Checksum { value: now, is_complete, is_ambiguous: is_equal_sum(addresses.fold16(), 0) }
    }

    #[inline(always)]
    fn csum_replace(&self, offset: u32, change: ChecksumDiff) -> Option<()> {
        self.l4_csum_replace(offset as usize, 0, change.fold32(), 0).ok()
    }

    #[inline(always)]
    fn csum_update(&self, change: ChecksumDiff) {
        // SAFETY: takes the context that the kernel gave us, and a number. It fails where there is no sum.
        let _no_checksum_complete =
            unsafe { bpf_csum_update(self.skb.skb, change.fold32() as u32) };
    }
}

impl Frame for XdpContext {
    #[inline(always)]
    fn linear_range(&self) -> Range<usize> {
        self.data()..self.data_end()
    }

    #[inline(always)]
    fn pull(&self, _length: u32) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, len: u32) -> bool {
        // SAFETY: as our caller says.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset, to, len) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_in(&self, offset: u32, from: *const c_void, len: u32) -> bool {
        // SAFETY: as our caller says; the helper reads only.
        unsafe { bpf_xdp_store_bytes(self.ctx, offset, from.cast_mut(), len) == 0 }
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
    fn csum_replace_pseudo(&self, _at: u32, _addresses: ChecksumDiff) -> Option<()> {
        Some(())
    }

    #[inline(always)]
    fn csum_replaced(&self, old: u16, _now: u16, addresses: ChecksumDiff) -> Checksum {
        // What comes from a driver has its whole checksum.
        Checksum { value: addresses.apply_to_checksum(old), is_complete: true, is_ambiguous: false }
    }

    #[inline(always)]
    fn csum_replace(&self, _at: u32, _change: ChecksumDiff) -> Option<()> {
        None
    }

    #[inline(always)]
    fn csum_update(&self, _change: ChecksumDiff) {}
}
