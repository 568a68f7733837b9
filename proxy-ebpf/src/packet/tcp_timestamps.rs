//! Shift in TCP options from one leg to the other, and options that are nothing but timestamps (RFC 7323).

use snisplit_common::abi::packet::Translation;

use super::checksum::ChecksumDiff;
use super::headers::{TCPOPT_NOP, TCPOPT_TIMESTAMP};

/// Bytes of options that are timestamps and nothing else, as RFC 7323 appendix A lays them out.
pub(super) const TS_ONLY_LEN: u32 = 12;

/// What a [`Way`] adds to options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct OptionDelta {
    pub(super) ack_delta: u32,
    pub(super) tsval_delta: u32,
    pub(super) tsecr_delta: u32,
    pub(super) min_tsecr: u32,
}

impl OptionDelta {
    #[inline(always)]
    pub(super) const fn from_translation(translation: &Translation) -> Self {
        let Translation { ack_delta, tsval_delta, tsecr_delta, min_tsecr, .. } = *translation;
        Self { ack_delta, tsval_delta, tsecr_delta, min_tsecr }
    }

    /// An echo of a timestamp, for the one who sent that.
    #[inline(always)]
    pub(super) const fn translate_tsecr(&self, tsecr: u32) -> u32 {
        let tsecr = tsecr.wrapping_add(self.tsecr_delta);
        let is_too_old = (tsecr.wrapping_sub(self.min_tsecr) as i32) < 0;
        if is_too_old { self.min_tsecr } else { tsecr }
    }
}

/// Options of [`TS_ONLY_LEN`] bytes, in network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Timestamps {
    option_header: u32,
    tsval: u32,
    tsecr: u32,
}

impl Timestamps {
    /// Whether there is nothing else.
    #[inline(always)]
    pub(super) fn is_only_option(&self) -> bool {
        self.option_header == u32::from_ne_bytes([TCPOPT_NOP, TCPOPT_NOP, TCPOPT_TIMESTAMP, 10])
    }

    /// For the receiver; `change` is what that changes in the sum.
    #[inline(always)]
    pub(super) fn translated(self, translation: &Translation, change: &mut ChecksumDiff) -> Self {
        let delta = OptionDelta::from_translation(translation);
        let tsval = u32::from_be(self.tsval).wrapping_add(delta.tsval_delta).to_be();
        let tsecr = delta.translate_tsecr(u32::from_be(self.tsecr)).to_be();
        change.add_u32(self.tsval, tsval);
        change.add_u32(self.tsecr, tsecr);
        Self { tsval, tsecr, ..self }
    }
}
