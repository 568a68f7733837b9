//! Translation of TCP options: SACK blocks (RFC 2018, RFC 2883) and timestamps (RFC 7323).

use core::arch::asm;
use core::ptr;

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::cty::{c_long, c_void};
use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::btf_map;
use snisplit_common::abi::packet::{
    CLAMP_MSS_MASK, CLAMP_NO_SACK, CLAMP_NO_TIMESTAMPS, Translation,
};

use super::checksum::ChecksumDiff;
use super::frame::Frame;
use super::headers::{MAX_OPTIONS_LEN, TCPOPT_NOP, TCPOPT_TIMESTAMP};
use super::tcp_timestamps::OptionDelta;

const TCPOPT_EOL: u8 = 0;
const TCPOPT_MSS: u8 = 2;
const TCPOPT_SACK_PERM: u8 = 4;
const TCPOPT_SACK: u8 = 5;

/// Largest number of options: each has at least one byte.
const MAX_OPTION_STEPS: u32 = MAX_OPTIONS_LEN;
/// Largest number of edges in a SACK option: four blocks with two edges each.
const MAX_SACK_EDGES: u32 = 8;

/// Options of a packet, and the position of the walk over them.
///
/// It is in a map, because it is too large for the stack. The verifier also knows no value in a map, so it
/// checks the code for one option only once.
#[repr(C)]
pub(super) struct Options {
    /// Bytes of the options, with room for reads after their end.
    pub(super) bytes: [u8; MAX_OPTIONS_LEN as usize + 8],
    /// Change of the checksum so far.
    pub(super) diff: ChecksumDiff,
    len: u32,
    /// Offset of the next option.
    offset: u32,
    /// 1 if the bytes differ from those in the packet.
    pub(super) is_changed: u32,
    /// 1 if an option has an invalid length.
    pub(super) is_malformed: u32,
    has_tsval: u32,
    tsval: u32,
    /// Limits of a SYN, a value of [`SYN_CLAMPS`](super::maps::SYN_CLAMPS). 0: translate the options instead.
    pub(super) clamp: u32,
    delta: OptionDelta,
}

/// Options of this CPU. No other program interrupts one of these: softirqs are off while it runs.
#[btf_map(name = "packet_options")]
static OPTIONS: PerCpuArray<Options, 1> = PerCpuArray::new();

#[inline(always)]
fn scratch() -> Option<&'static mut Options> {
    // SAFETY: the slot belongs to this CPU and lives as long as the map. One function at a time uses it.
    OPTIONS.get_ptr_mut(0).map(|slot| unsafe { &mut *slot })
}

/// Result of a failed rewrite. No folded checksum change has this value.
pub(super) const REWRITE_FAILED: u64 = u64::MAX;

/// Translates options in the packet. Returns the folded change of the checksum, or [`REWRITE_FAILED`].
#[inline(never)]
pub(super) fn rewrite_options(
    ctx: &impl Frame,
    offset: u32,
    len: u32,
    translation: &Translation,
) -> u64 {
    let Some(options) = Options::read(ctx, offset, len) else { return REWRITE_FAILED };
    match options.translate(translation) {
        Some(change) if options.write(ctx, offset).is_some() => change.fold32(),
        _ => REWRITE_FAILED,
    }
}

impl Options {
    /// Reads the options of a packet. `None`: the packet is too short.
    #[inline(always)]
    pub(super) fn read(ctx: &impl Frame, offset: u32, len: u32) -> Option<&'static mut Self> {
        let options = scratch()?;
        options.diff = ChecksumDiff::default();
        (options.len, options.offset) = (len, 0);
        (options.is_changed, options.is_malformed, options.has_tsval) = (0, 0, 0);
        options.clamp = 0;
        if len == 0 {
            return Some(options);
        }
        let len = bounded_nonzero(len, MAX_OPTIONS_LEN)?;
        let to = options.bytes.as_mut_ptr().cast();
        // SAFETY: the helper writes `len` bytes, for which `bytes` has room.
        let is_read = unsafe { ctx.copy_out(offset, to, len) };
        is_read.then_some(options)
    }

    /// Returns the timestamp of the sender, after [`translate`](Self::translate).
    #[inline(always)]
    pub(super) const fn tsval(&self) -> Option<u32> {
        if self.has_tsval == 0 { None } else { Some(self.tsval) }
    }

    /// Writes the options to the packet if they have changed. `None`: the packet is not writable.
    #[inline(always)]
    pub(super) fn write(&self, ctx: &impl Frame, offset: u32) -> Option<()> {
        if self.is_changed == 0 {
            return Some(());
        }
        let len = bounded_nonzero(self.len, MAX_OPTIONS_LEN)?;
        let from = self.bytes.as_ptr().cast();
        // SAFETY: the helper reads `len` bytes, which `bytes` has.
        let is_written = unsafe { ctx.copy_in(offset, from, len) };
        is_written.then_some(())
    }

    /// Translates the options, and returns the change of the checksum. `None`: they are malformed.
    #[inline(always)]
    pub(super) fn translate(&mut self, translation: &Translation) -> Option<ChecksumDiff> {
        self.delta = OptionDelta::from_translation(translation);
        self.for_each_option();
        (self.is_malformed == 0).then_some(self.diff)
    }

    /// Calls [`next_option`](Self::next_option) for each option.
    #[inline(always)]
    pub(super) fn for_each_option(&self) {
        if self.len > 0 {
            // SAFETY: the callback has the signature of `bpf_loop`, and does not use its context.
            unsafe { bpf_loop(MAX_OPTION_STEPS, option_step as *mut c_void, ptr::null_mut(), 0) };
        }
    }

    /// Translates or clamps one option, and returns whether more may follow. `None`: it is malformed.
    #[inline(always)]
    fn next_option(&mut self) -> Option<bool> {
        let offset = self.offset;
        if offset >= self.len {
            return Some(false);
        }
        match self.read_u8(offset)? {
            TCPOPT_EOL => return Some(false),
            TCPOPT_NOP => {
                self.offset = offset + 1;
                return Some(true);
            }
            _ => {}
        }
        let len = u32::from(self.read_u8(offset + 1)?);
        if len < 2 || offset + len > self.len {
            return None;
        }
        let clamp = self.clamp;
        match self.read_u8(offset)? {
            TCPOPT_MSS if clamp != 0 && len == 4 => {
                self.clamp_mss(offset + 2, (clamp & CLAMP_MSS_MASK) as u16)
            }
            TCPOPT_SACK_PERM if clamp & CLAMP_NO_SACK != 0 => self.nop_out(offset, len),
            TCPOPT_TIMESTAMP if clamp & CLAMP_NO_TIMESTAMPS != 0 => self.nop_out(offset, len),
            TCPOPT_SACK if clamp == 0 => self.translate_sack(offset + 2, len - 2),
            TCPOPT_TIMESTAMP if len == 10 && clamp == 0 => self.translate_timestamps(offset + 2),
            _ => {}
        }
        self.offset = offset + len;
        Some(true)
    }

    /// Translates the edges of a SACK option.
    #[inline(always)]
    fn translate_sack(&mut self, offset: u32, len: u32) {
        for edge in 0..MAX_SACK_EDGES {
            if edge * 4 + 4 <= len {
                let edge_offset = offset + edge * 4;
                let edge_value = self.read_u32(edge_offset).wrapping_add(self.delta.ack_delta);
                self.write_u32(edge_offset, edge_value);
            }
        }
    }

    /// Translates a timestamps option, and stores the timestamp of the sender.
    #[inline(always)]
    fn translate_timestamps(&mut self, offset: u32) {
        let tsval = self.read_u32(offset);
        (self.tsval, self.has_tsval) = (tsval, 1);
        self.write_u32(offset, tsval.wrapping_add(self.delta.tsval_delta));
        let tsecr = self.read_u32(offset + 4);
        self.write_u32(offset + 4, self.delta.translate_tsecr(tsecr));
    }

    #[inline(always)]
    pub(super) fn read_u8(&self, offset: u32) -> Option<u8> {
        self.bytes.get(offset as usize).copied()
    }

    #[inline(always)]
    fn u32_at_mut(&mut self, offset: u32) -> Option<&mut [u8; 4]> {
        self.bytes.get_mut(offset as usize..)?.first_chunk_mut()
    }

    #[inline(always)]
    fn read_u32(&mut self, offset: u32) -> u32 {
        self.u32_at_mut(offset).map_or(0, |word| u32::from_be_bytes(*word))
    }

    #[inline(always)]
    fn write_u32(&mut self, offset: u32, value: u32) {
        let Some(word) = self.u32_at_mut(offset) else { return };
        let (from, to) = (u32::from_ne_bytes(*word), value.to_be());
        *word = to.to_ne_bytes();
        match offset % 2 {
            0 => self.diff.add_u32(from, to),
            _ => self.diff.add_u32_unaligned(from, to),
        }
        self.is_changed = 1;
    }
}

/// Returns a value if it is in 1..=`max`, in a form that the verifier understands.
///
/// Older verifiers, such as that of Linux 6.1, learn nothing from a comparison with 0.
#[inline(always)]
fn bounded_nonzero(value: u32, max: u32) -> Option<u32> {
    let mut minus_one = u64::from(value);
    // SAFETY: this subtracts one from a register. The compiler must not know the result, or it would
    // compare the value itself.
    unsafe { asm!("{0} += -1", inout(reg) minus_one, options(nomem, nostack)) };
    (minus_one < u64::from(max)).then_some(minus_one as u32 + 1)
}

/// Callback of `bpf_loop`. 0 continues the loop.
extern "C" fn option_step(_index: u32, _context: *mut c_void) -> c_long {
    let Some(options) = scratch() else { return 1 };
    match options.next_option() {
        Some(true) => 0,
        Some(false) => 1,
        None => {
            options.is_malformed = 1;
            1
        }
    }
}
