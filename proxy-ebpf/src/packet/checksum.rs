//! The Internet checksum, updated by what changed (RFC 1624).

/// What changed, as a one's complement sum of words in network order.
#[derive(Clone, Copy, Default)]
pub(super) struct ChecksumDiff(u64);

impl ChecksumDiff {
    /// Four bytes at an even offset.
    #[inline(always)]
    pub(super) fn add_u32(&mut self, from: u32, to: u32) {
        self.0 += u64::from(!from) + u64::from(to);
    }

    /// Two bytes at an even offset.
    #[inline(always)]
    pub(super) fn add_u16(&mut self, from: u16, to: u16) {
        self.add_u32(from.into(), to.into());
    }

    /// Four bytes at an odd offset: each byte counts in the other half of its sum.
    #[inline(always)]
    pub(super) fn add_u32_unaligned(&mut self, from: u32, to: u32) {
        self.add_u32(from.rotate_left(8), to.rotate_left(8));
    }

    /// One that was folded.
    #[inline(always)]
    pub(super) const fn from_folded(folded: u64) -> Self {
        Self(folded)
    }

    /// One more that was.
    #[inline(always)]
    pub(super) fn add_folded(&mut self, folded: u64) {
        self.0 += folded & 0xffff_ffff;
    }

    /// The checksum that this one becomes.
    #[inline(always)]
    pub(super) fn apply_to_checksum(self, sum: u16) -> u16 {
        !self.add_to_sum(!sum)
    }

    /// A sum that has nothing of the complement in it.
    #[inline(always)]
    pub(super) fn add_to_sum(self, sum: u16) -> u16 {
        Self(self.0 + u64::from(sum)).fold16()
    }

    /// In two bytes.
    #[inline(always)]
    pub(super) fn fold16(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        for _ in 0..3 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The same in two bytes: it takes less to go on with.
    #[inline(always)]
    pub(super) fn reduced(self) -> Self {
        Self(self.fold16().into())
    }

    /// As the kernel's helpers take it.
    #[inline(always)]
    pub(super) fn fold32(self) -> u64 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (once & 0xffff_ffff) + (once >> 32)
    }
}

/// Whether two sums are the same, of which 0 has two.
#[inline(always)]
pub(super) const fn is_equal_sum(a: u16, b: u16) -> bool {
    a == b || a ^ b == u16::MAX && (a == 0 || b == 0)
}

/// The checksum of a segment whose addresses are in it already.
pub(super) struct Checksum {
    pub(super) value: u16,
    /// Whether the rest of the segment is in it.
    pub(super) is_complete: bool,
    /// Whether that is not known.
    pub(super) is_ambiguous: bool,
}

impl Checksum {
    /// With a change of the rest.
    #[inline(always)]
    pub(super) fn updated(&self, change: ChecksumDiff) -> u16 {
        if self.is_complete && !self.is_ambiguous {
            change.apply_to_checksum(self.value)
        } else {
            self.value
        }
    }
}
