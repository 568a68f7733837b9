//! What our SYN to a back end offers: no more than the client has, for the two are to agree. The kernel
//! has no switch for that by the socket.

use aya_ebpf::programs::TcContext;

use super::checksum::ChecksumDiff;
use super::headers::{Segment, TCP_HLEN, TCPOPT_NOP, store_addr};
use super::maps::SYN_CLAMPS;
use super::options::Options;

/// Where a header's checksum is.
const TCP_CHECK_OFFSET: u32 = 16;
/// Bytes of timestamps, the longest option that is taken out.
const TIMESTAMPS_LEN: u32 = 10;

/// Changes the options of a SYN, if that is wanted of whom it is to and the port that it is from.
#[inline(always)]
pub(super) fn clamp_syn(ctx: &TcContext, segment: &mut Segment) {
    // From whatever address of ours.
    store_addr(&mut segment.tuple.destination, [0; 4]);
    // SAFETY: written by user space before the socket connects.
    let Some(clamp) = (unsafe { SYN_CLAMPS.get(&segment.tuple) }).copied() else { return };
    if segment.is_translatable != 0 {
        // What stays as it was is found in the answer.
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
    /// Makes what is not to be offered no option at all, and the size of segments no larger than that.
    #[inline(always)]
    pub(super) fn clamp(&mut self, clamp: u32) -> Option<ChecksumDiff> {
        self.clamp = clamp;
        self.for_each_option();
        (self.is_malformed == 0).then_some(self.diff)
    }

    /// No operation, so many times.
    #[inline(always)]
    pub(super) fn nop_out(&mut self, offset: u32, len: u32) {
        for nth in 0..TIMESTAMPS_LEN {
            if nth < len {
                self.write_u8(offset + nth, TCPOPT_NOP);
            }
        }
    }

    /// A size of segments, unless it is smaller already.
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
