//! Deltas for TCP options, and options that consist of timestamps only (RFC 7323).

use snisplit_common::abi::packet::Translation;

use super::checksum::ChecksumDiff;
use super::headers::{TCPOPT_NOP, TCPOPT_TIMESTAMP};

/// Size in bytes of options that consist of timestamps only, in the layout of RFC 7323 appendix A.
pub(super) const TS_ONLY_LEN: u32 = 12;

/// Part of a [`Translation`] that applies to options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct OptionDelta {
    pub(super) ack_delta: u32,
    pub(super) tsval_delta: u32,
    pub(super) tsecr_delta: u32,
    pub(super) min_tsecr: u32,
}

impl OptionDelta {
    /// Copies the deltas of a translation.
    #[inline(always)]
    pub(super) const fn from_translation(translation: &Translation) -> Self {
        let Translation { ack_delta, tsval_delta, tsecr_delta, min_tsecr, .. } = *translation;
        Self { ack_delta, tsval_delta, tsecr_delta, min_tsecr }
    }

    /// Translates the echo of a timestamp, for the peer that sent the timestamp.
    #[inline(always)]
    pub(super) const fn translate_tsecr(&self, tsecr: u32) -> u32 {
        let tsecr = tsecr.wrapping_add(self.tsecr_delta);
        let is_too_old = (tsecr.wrapping_sub(self.min_tsecr) as i32) < 0;
        if is_too_old { self.min_tsecr } else { tsecr }
    }
}

/// Options of [`TS_ONLY_LEN`] bytes, in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Timestamps {
    option_header: u32,
    tsval: u32,
    tsecr: u32,
}

impl Timestamps {
    /// Whether the options consist of timestamps only.
    #[inline(always)]
    pub(super) fn is_only_option(&self) -> bool {
        self.option_header == u32::from_ne_bytes([TCPOPT_NOP, TCPOPT_NOP, TCPOPT_TIMESTAMP, 10])
    }

    /// Returns the options for the receiver, and adds the change of the checksum to `change`.
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
