//! Incremental update of the Internet checksum (RFC 1624).

/// Change of a checksum, as a one's complement sum of words in network byte order.
#[derive(Clone, Copy, Default)]
pub(super) struct ChecksumDiff(u64);

impl ChecksumDiff {
    /// Adds the change of four bytes at an even offset.
    #[inline(always)]
    pub(super) fn add_u32(&mut self, from: u32, to: u32) {
        self.0 += u64::from(!from) + u64::from(to);
    }

    /// Adds the change of two bytes at an even offset.
    #[inline(always)]
    pub(super) fn add_u16(&mut self, from: u16, to: u16) {
        self.add_u32(from.into(), to.into());
    }

    /// Adds the change of four bytes at an odd offset, which swaps the bytes of each 16-bit word.
    #[inline(always)]
    pub(super) fn add_u32_unaligned(&mut self, from: u32, to: u32) {
        self.add_u32(from.rotate_left(8), to.rotate_left(8));
    }

    /// Makes a change from a value that [`fold32`](Self::fold32) returned.
    #[inline(always)]
    pub(super) const fn from_folded(folded: u64) -> Self {
        Self(folded)
    }

    /// Adds a value that [`fold32`](Self::fold32) returned.
    #[inline(always)]
    pub(super) fn add_folded(&mut self, folded: u64) {
        self.0 += folded & 0xffff_ffff;
    }

    /// Returns the checksum after this change.
    #[inline(always)]
    pub(super) fn apply_to_checksum(self, sum: u16) -> u16 {
        !self.add_to_sum(!sum)
    }

    /// Returns the sum after this change. A sum is the complement of a checksum.
    #[inline(always)]
    pub(super) fn add_to_sum(self, sum: u16) -> u16 {
        Self(self.0 + u64::from(sum)).fold16()
    }

    /// Folds the change to 16 bits.
    #[inline(always)]
    pub(super) fn fold16(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        for _ in 0..3 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Folds the change to 16 bits, so that later operations on it are cheaper.
    #[inline(always)]
    pub(super) fn reduced(self) -> Self {
        Self(self.fold16().into())
    }

    /// Folds the change to 32 bits, the form that the kernel's helpers expect.
    #[inline(always)]
    pub(super) fn fold32(self) -> u64 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (once & 0xffff_ffff) + (once >> 32)
    }
}

/// Whether two sums are equal. Zero has two forms in one's complement.
#[inline(always)]
pub(super) const fn is_equal_sum(a: u16, b: u16) -> bool {
    a == b || a ^ b == u16::MAX && (a == 0 || b == 0)
}

/// Checksum of a segment after the change of its addresses.
pub(super) struct Checksum {
    pub(super) value: u16,
    /// Whether it covers the whole segment, and not only the pseudo-header.
    pub(super) is_complete: bool,
    /// Whether `is_complete` is unknown.
    pub(super) is_ambiguous: bool,
}

impl Checksum {
    /// Returns the checksum after a change of the segment.
    #[inline(always)]
    pub(super) fn updated(&self, change: ChecksumDiff) -> u16 {
        if self.is_complete && !self.is_ambiguous {
            change.apply_to_checksum(self.value)
        } else {
            self.value
        }
    }
}
