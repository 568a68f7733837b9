//! Limits for the options of a SYN to a back end.
//!
//! The two TCP connections of an offloaded flow must agree on their options, so the SYN must not offer more
//! than the client did. The kernel has no socket option for that.

use aya_ebpf::programs::TcContext;

use super::checksum::ChecksumDiff;
use super::headers::{Segment, TCP_HLEN, TCPOPT_NOP, store_addr};
use super::maps::SYN_CLAMPS;
use super::options::Options;

/// Offset of the checksum in a TCP header.
const TCP_CHECK_OFFSET: u32 = 16;
/// Size of a timestamps option in bytes, the longest option that is removed.
const TIMESTAMPS_LEN: u32 = 10;

/// Clamps the options of a SYN, if the agent has set limits for its destination and source port.
#[inline(always)]
pub(super) fn clamp_syn(ctx: &TcContext, segment: &mut Segment) {
    // The key has no address of this host.
    store_addr(&mut segment.tuple.destination, [0; 4]);
    // SAFETY: the agent writes the element before the socket connects.
    let Some(clamp) = (unsafe { SYN_CLAMPS.get(&segment.tuple) }).copied() else { return };
    if segment.is_translatable != 0 {
        // The agent checks the options of the SYN-ACK.
        let _offers_more = clamp_options(ctx, segment, clamp);
    }
}

#[inline(always)]
fn clamp_options(ctx: &TcContext, segment: &Segment, clamp: u32) -> Option<()> {
    let offset = segment.tcp_offset + TCP_HLEN;
    let options = Options::read(ctx, offset, segment.options_len)?;
    let diff = options.clamp(clamp)?;
    options.write(ctx, offset)?;
    ctx.l4_csum_replace((segment.tcp_offset + TCP_CHECK_OFFSET) as usize, 0, diff.fold32(), 0).ok()
}

impl Options {
    /// Removes options and lowers the MSS according to the limits. Returns the change of the checksum.
    /// `None`: the options are malformed.
    #[inline(always)]
    pub(super) fn clamp(&mut self, clamp: u32) -> Option<ChecksumDiff> {
        self.clamp = clamp;
        self.for_each_option();
        (self.is_malformed == 0).then_some(self.diff)
    }

    /// Overwrites an option with no-operation options.
    #[inline(always)]
    pub(super) fn nop_out(&mut self, offset: u32, len: u32) {
        for nth in 0..TIMESTAMPS_LEN {
            if nth < len {
                self.write_u8(offset + nth, TCPOPT_NOP);
            }
        }
    }

    /// Lowers the MSS to `max_mss`.
    #[inline(always)]
    pub(super) fn clamp_mss(&mut self, offset: u32, max_mss: u16) {
        let high = self.read_u8(offset).unwrap_or_default();
        let low = self.read_u8(offset + 1).unwrap_or_default();
        let [new_high, new_low] = max_mss.to_be_bytes();
        if max_mss < u16::from_be_bytes([high, low]) {
            self.write_u8(offset, new_high);
            self.write_u8(offset + 1, new_low);
        }
    }

    #[inline(always)]
    fn write_u8(&mut self, offset: u32, value: u8) {
        let Some(byte) = self.bytes.get_mut(offset as usize) else { return };
        let half_word = |byte| if offset % 2 == 0 { [byte, 0] } else { [0, byte] };
        let (from, to) = (half_word(*byte), half_word(value));
        *byte = value;
        self.diff.add_u16(u16::from_ne_bytes(from), u16::from_ne_bytes(to));
        self.is_changed = 1;
    }
}
