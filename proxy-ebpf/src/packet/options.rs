//! TCP options that hold numbers of the flow: SACK blocks (RFC 2018, 2883) and timestamps (RFC 7323).

use core::arch::asm;
use core::ptr;

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::cty::{c_long, c_void};
use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::packet::{
    CLAMP_MSS_MASK, CLAMP_NO_SACK, CLAMP_NO_TIMESTAMPS, Translation,
};

use crate::frame::Frame;
use crate::headers::OPTIONS;
use crate::stamps::Shift;
use crate::sum::Change;

const END: u8 = 0;
pub(crate) const NOP: u8 = 1;
const MSS: u8 = 2;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
pub(crate) const TIMESTAMPS: u8 = 8;

/// More options than fit.
const MOST: u32 = OPTIONS;
/// Edges of the blocks in a SACK option: four blocks fit.
const EDGES: u32 = 8;

/// Options as they stand in a packet, and how far the walk over them has come. It is in a map because
/// it is too much for the stack, and so that the verifier takes nothing in it for known: one look at one
/// option is enough for it then.
#[repr(C)]
pub(crate) struct Options {
    /// With room for what is read behind their end.
    pub(crate) bytes: [u8; OPTIONS as usize + 8],
    pub(crate) change: Change,
    length: u32,
    /// Where the next option begins.
    at: u32,
    pub(crate) is_changed: u32,
    pub(crate) is_malformed: u32,
    has_stamp: u32,
    stamp: u32,
    /// What a SYN may offer (`OFFERS`), if this is one; then nothing is translated.
    pub(crate) offered: u32,
    shift: Shift,
}

/// This CPU's. No program is interrupted by another one: softirqs are off while each of them runs.
#[btf_map(name = "packet_options")]
static WORK: PerCpuArray<Options, 1> = PerCpuArray::new();

#[inline(always)]
fn work() -> Option<&'static mut Options> {
    // SAFETY: the slot is this CPU's, never goes, and is asked for by one function at a time.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// No folded sum is as large.
pub(crate) const FAILED: u64 = u64::MAX;

/// Translates options where they lie; what that changes in the sum, or [`FAILED`].
#[inline(never)]
pub(crate) fn rewrite(ctx: &impl Frame, at: u32, length: u32, way: &Translation) -> u64 {
    let Some(options) = Options::read(ctx, at, length) else { return FAILED };
    match options.translate(way) {
        Some(change) if options.write(ctx, at).is_some() => change.folded(),
        _ => FAILED,
    }
}

impl Options {
    #[inline(always)]
    pub(crate) fn read(ctx: &impl Frame, at: u32, length: u32) -> Option<&'static mut Self> {
        let this = work()?;
        this.change = Change::default();
        (this.length, this.at) = (length, 0);
        (this.is_changed, this.is_malformed, this.has_stamp) = (0, 0, 0);
        this.offered = 0;
        if length == 0 {
            return Some(this);
        }
        let length = at_least_one(length, OPTIONS)?;
        let to = this.bytes.as_mut_ptr().cast();
        // SAFETY: the helper writes `length` bytes, for which there is room.
        let is_read = unsafe { ctx.copy_out(at, to, length) };
        is_read.then_some(this)
    }

    /// The sender's timestamp, once they are translated.
    #[inline(always)]
    pub(crate) const fn stamp(&self) -> Option<u32> {
        if self.has_stamp == 0 { None } else { Some(self.stamp) }
    }

    #[inline(always)]
    pub(crate) fn write(&self, ctx: &impl Frame, at: u32) -> Option<()> {
        if self.is_changed == 0 {
            return Some(());
        }
        let length = at_least_one(self.length, OPTIONS)?;
        let from = self.bytes.as_ptr().cast();
        // SAFETY: the helper reads `length` bytes, which are there.
        let is_written = unsafe { ctx.copy_in(at, from, length) };
        is_written.then_some(())
    }

    /// Translates in place; what that changes in the sum. `None`: they cannot be.
    #[inline(always)]
    pub(crate) fn translate(&mut self, way: &Translation) -> Option<Change> {
        self.shift = Shift::of(way);
        self.walk();
        (self.is_malformed == 0).then_some(self.change)
    }

    #[inline(always)]
    pub(crate) fn walk(&self) {
        if self.length > 0 {
            // SAFETY: the callback is one, and takes nothing from the context.
            unsafe { bpf_loop(MOST, step as *mut c_void, ptr::null_mut(), 0) };
        }
    }

    /// One option; whether there may be more.
    #[inline(always)]
    fn one(&mut self) -> Option<bool> {
        let at = self.at;
        if at >= self.length {
            return Some(false);
        }
        match self.byte(at)? {
            END => return Some(false),
            NOP => {
                self.at = at + 1;
                return Some(true);
            }
            _ => {}
        }
        let length = u32::from(self.byte(at + 1)?);
        if length < 2 || at + length > self.length {
            return None;
        }
        let offered = self.offered;
        match self.byte(at)? {
            MSS if offered != 0 && length == 4 => {
                self.size(at + 2, (offered & CLAMP_MSS_MASK) as u16)
            }
            SACK_PERMITTED if offered & CLAMP_NO_SACK != 0 => self.blank(at, length),
            TIMESTAMPS if offered & CLAMP_NO_TIMESTAMPS != 0 => self.blank(at, length),
            SACK if offered == 0 => self.edges(at + 2, length - 2),
            TIMESTAMPS if length == 10 && offered == 0 => self.stamps(at + 2),
            _ => {}
        }
        self.at = at + length;
        Some(true)
    }

    #[inline(always)]
    fn edges(&mut self, at: u32, length: u32) {
        for edge in 0..EDGES {
            if edge * 4 + 4 <= length {
                let at = at + edge * 4;
                let number = self.number(at).wrapping_add(self.shift.ack);
                self.put(at, number);
            }
        }
    }

    #[inline(always)]
    fn stamps(&mut self, at: u32) {
        let stamp = self.number(at);
        (self.stamp, self.has_stamp) = (stamp, 1);
        self.put(at, stamp.wrapping_add(self.shift.stamp));
        let echo = self.number(at + 4);
        self.put(at + 4, self.shift.echoed(echo));
    }

    #[inline(always)]
    pub(crate) fn byte(&self, at: u32) -> Option<u8> {
        self.bytes.get(at as usize).copied()
    }

    #[inline(always)]
    fn word(&mut self, at: u32) -> Option<&mut [u8; 4]> {
        self.bytes.get_mut(at as usize..)?.first_chunk_mut()
    }

    #[inline(always)]
    fn number(&mut self, at: u32) -> u32 {
        self.word(at).map_or(0, |word| u32::from_be_bytes(*word))
    }

    #[inline(always)]
    fn put(&mut self, at: u32, number: u32) {
        let Some(word) = self.word(at) else { return };
        let (from, to) = (u32::from_ne_bytes(*word), number.to_be());
        *word = to.to_ne_bytes();
        match at % 2 {
            0 => self.change.word(from, to),
            _ => self.change.odd_word(from, to),
        }
        self.is_changed = 1;
    }
}

/// The number, if it is one to `most`, so that the verifier sees it: older ones, that of Linux 6.1 for
/// one, take nothing from a comparison with 0.
#[inline(always)]
fn at_least_one(number: u32, most: u32) -> Option<u32> {
    let mut before = u64::from(number);
    // SAFETY: takes one from a register; the compiler must not see that it has the number then.
    unsafe { asm!("{0} += -1", inout(reg) before, options(nomem, nostack)) };
    (before < u64::from(most)).then_some(before as u32 + 1)
}

/// `bpf_loop`'s: 0 is to go on.
extern "C" fn step(_index: u32, _context: *mut c_void) -> c_long {
    let Some(options) = work() else { return 1 };
    match options.one() {
        Some(true) => 0,
        Some(false) => 1,
        None => {
            options.is_malformed = 1;
            1
        }
    }
}
