//! What our SYN to a back end offers: no more than the client has, for the two are to agree. The kernel
//! has no switch for that by the socket.

use aya_ebpf::programs::TcContext;

use crate::headers::{Segment, TCP, put};
use crate::maps::OFFERS;
use crate::options::{NOP, Options};
use crate::sum::Change;

/// Where a header's checksum is.
const CHECK: u32 = 16;
/// Bytes of timestamps, the longest option that is taken out.
const STAMPS: u32 = 10;

/// Changes the options of a SYN, if that is wanted of whom it is to and the port that it is from.
#[inline(always)]
pub(crate) fn restrain(ctx: &TcContext, segment: &mut Segment) {
    // From whatever address of ours.
    put(&mut segment.tuple.destination, [0; 4]);
    // SAFETY: written by user space before the socket connects.
    let Some(offered) = (unsafe { OFFERS.get(&segment.tuple) }).copied() else { return };
    if segment.is_whole != 0 {
        // What stays as it was is found in the answer.
        let _offers_more = change(ctx, segment, offered);
    }
}

#[inline(always)]
fn change(ctx: &TcContext, segment: &Segment, offered: u32) -> Option<()> {
    let at = segment.at + TCP;
    let options = Options::read(ctx, at, segment.options)?;
    let change = options.restrain(offered)?;
    options.write(ctx, at)?;
    ctx.l4_csum_replace((segment.at + CHECK) as usize, 0, change.folded(), 0).ok()
}

impl Options {
    /// Makes what is not to be offered no option at all, and the size of segments no larger than that.
    #[inline(always)]
    pub(crate) fn restrain(&mut self, offered: u32) -> Option<Change> {
        self.offered = offered;
        self.walk();
        (self.is_malformed == 0).then_some(self.change)
    }

    /// No operation, so many times.
    #[inline(always)]
    pub(crate) fn blank(&mut self, at: u32, length: u32) {
        for nth in 0..STAMPS {
            if nth < length {
                self.put_byte(at + nth, NOP);
            }
        }
    }

    /// A size of segments, unless it is smaller already.
    #[inline(always)]
    pub(crate) fn size(&mut self, at: u32, most: u16) {
        let high = self.byte(at).unwrap_or_default();
        let low = self.byte(at + 1).unwrap_or_default();
        let [new_high, new_low] = most.to_be_bytes();
        if most < u16::from_be_bytes([high, low]) {
            self.put_byte(at, new_high);
            self.put_byte(at + 1, new_low);
        }
    }

    #[inline(always)]
    fn put_byte(&mut self, at: u32, new: u8) {
        let Some(byte) = self.bytes.get_mut(at as usize) else { return };
        let pair = |byte| if at % 2 == 0 { [byte, 0] } else { [0, byte] };
        let (from, to) = (pair(*byte), pair(new));
        *byte = new;
        self.change.half(u16::from_ne_bytes(from), u16::from_ne_bytes(to));
        self.is_changed = 1;
    }
}
