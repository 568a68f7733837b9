//! Access to a frame: a socket buffer at TC, or a buffer of the driver at XDP.

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

/// Operations on a frame that differ between TC and XDP.
pub(super) trait Frame: EbpfContext {
    /// Copies bytes out of the frame, and returns whether that succeeded.
    ///
    /// # Safety
    /// `to` has room for `len` bytes.
    unsafe fn copy_out(&self, offset: u32, to: *mut c_void, len: u32) -> bool;

    /// Copies bytes into the frame, and returns whether that succeeded.
    ///
    /// # Safety
    /// `from` has `len` bytes.
    unsafe fn copy_in(&self, offset: u32, from: *const c_void, len: u32) -> bool;

    /// Addresses of the linear data: bytes that are accessible without a helper.
    fn linear_range(&self) -> Range<usize>;

    /// Extends the linear data to this length, and returns whether that succeeded.
    fn pull(&self, len: u32) -> bool;

    /// EtherType (`h_proto`), or 0 if the kernel has removed a VLAN tag.
    fn protocol(&self) -> u16;

    /// Length of the frame in bytes. At XDP, this is the length of its first buffer.
    fn length(&self) -> u32;

    /// Updates the TCP checksum after a change of addresses (`BPF_F_PSEUDO_HDR`).
    fn csum_replace_pseudo(&self, offset: u32, addresses: ChecksumDiff) -> Option<()>;

    /// Describes the checksum that [`Frame::csum_replace_pseudo`] has changed from `old` to `now`.
    fn csum_replaced(&self, old: u16, now: u16, addresses: ChecksumDiff) -> Checksum;

    /// Updates a checksum after a change of the segment, if it covers the segment.
    fn csum_replace(&self, offset: u32, change: ChecksumDiff) -> Option<()>;

    /// Updates the sum of the whole packet, if a NIC has computed one (`CHECKSUM_COMPLETE`).
    fn csum_update(&self, change: ChecksumDiff);

    /// Returns the linear data if it has at least this length. Direct access avoids helper calls, whose
    /// returns are slow on processors with SRSO mitigation (Documentation/admin-guide/hw-vuln/srso.rst).
    #[inline(always)]
    fn linear(&self, len: u32) -> Option<LinearData> {
        let Range { start, end } = self.linear_range();
        (start + len as usize <= end).then_some(LinearData(start))
    }

    /// Returns the linear data, extended to this length if necessary.
    #[inline(always)]
    fn pull_linear(&self, len: u32) -> Option<LinearData> {
        match self.linear(len) {
            None if self.pull(len) => self.linear(len),
            linear => linear,
        }
    }

    /// Reads a value from the linear data, extended if necessary. The offset must be a constant.
    #[inline(always)]
    fn peek<T: Copy>(&self, offset: u32) -> Option<T> {
        self.pull_linear(offset + size_of::<T>() as u32).map(|linear| linear.get(offset))
    }

    /// Reads a value with a helper.
    #[inline(always)]
    fn load<T>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `value` has this size.
        let is_there =
            unsafe { self.copy_out(offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) };
        // SAFETY: the helper has written it, and each bit pattern of a header is valid.
        is_there.then(|| unsafe { value.assume_init() })
    }

    /// Writes a value with a helper.
    #[inline(always)]
    fn store<T>(&self, offset: u32, value: &T) -> Option<()> {
        // SAFETY: `value` has this size.
        let is_stored =
            unsafe { self.copy_in(offset, ptr::from_ref(value).cast(), size_of::<T>() as u32) };
        is_stored.then_some(())
    }
}

/// Linear data of a frame. A helper that changes the frame invalidates it.
///
/// The verifier rejects a program that accesses bytes after the requested length, or with an alignment
/// that the machine does not support.
pub(super) struct LinearData(usize);

impl LinearData {
    /// Reads a value.
    #[inline(always)]
    pub(super) fn get<T: Copy>(&self, offset: u32) -> T {
        // SAFETY: the verifier checks the bounds, and each bit pattern of a header is valid.
        unsafe { ((self.0 + offset as usize) as *const T).read() }
    }

    /// Writes a value. For a program that does this, the kernel ensures that no other buffer shares the
    /// bytes (`bpf_unclone_prologue`, net/core/filter.c).
    #[inline(always)]
    pub(super) fn set<T>(&mut self, offset: u32, value: T) {
        // SAFETY: as in `get`.
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
        // SAFETY: the caller guarantees it.
        unsafe { bpf_skb_load_bytes(self.as_ptr().cast_const(), offset, to, len) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_in(&self, offset: u32, from: *const c_void, len: u32) -> bool {
        // SAFETY: the caller guarantees it.
        unsafe { bpf_skb_store_bytes(self.skb.skb, offset, from, len, 0) == 0 }
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        // SAFETY: the context is valid while the program runs.
        let skb = unsafe { &*self.skb.skb };
        // The packet arrives again at the VLAN interface, without the tag.
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
        // Only the kernel knows whether the checksum covers more than the pseudo-header so far
        // (CHECKSUM_PARTIAL). Its update shows which: the two forms change in opposite directions.
        let is_complete = is_equal_sum(addresses.add_to_sum(now), old);
        Checksum { value: now, is_complete, is_ambiguous: is_equal_sum(addresses.fold16(), 0) }
    }

    #[inline(always)]
    fn csum_replace(&self, offset: u32, change: ChecksumDiff) -> Option<()> {
        self.l4_csum_replace(offset as usize, 0, change.fold32(), 0).ok()
    }

    #[inline(always)]
    fn csum_update(&self, change: ChecksumDiff) {
        // SAFETY: the context is valid. The helper fails if the packet has no such sum.
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
        // SAFETY: the caller guarantees it.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset, to, len) == 0 }
    }

    #[inline(always)]
    unsafe fn copy_in(&self, offset: u32, from: *const c_void, len: u32) -> bool {
        // SAFETY: the caller guarantees it, and the helper only reads.
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
        // A frame that a driver receives has a complete checksum.
        Checksum { value: addresses.apply_to_checksum(old), is_complete: true, is_ambiguous: false }
    }

    #[inline(always)]
    fn csum_replace(&self, _at: u32, _change: ChecksumDiff) -> Option<()> {
        None
    }

    #[inline(always)]
    fn csum_update(&self, _change: ChecksumDiff) {}
}
