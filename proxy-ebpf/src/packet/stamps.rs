//! Shift in TCP options from one leg to the other, and options that are nothing but timestamps (RFC 7323).

use snisplit_common::abi::packet::Translation;

use crate::options::{NOP, TIMESTAMPS};
use crate::sum::Change;

/// Bytes of options that are timestamps and nothing else, as RFC 7323 appendix A lays them out.
pub(crate) const QUICK: u32 = 12;

/// What a [`Way`] adds to options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Shift {
    pub(crate) ack: u32,
    pub(crate) stamp: u32,
    pub(crate) echo: u32,
    pub(crate) echo_floor: u32,
}

impl Shift {
    #[inline(always)]
    pub(crate) const fn of(way: &Translation) -> Self {
        let Translation {
            ack_delta: ack,
            tsval_delta: stamp,
            tsecr_delta: echo,
            min_tsecr: echo_floor,
            ..
        } = *way;
        Self { ack, stamp, echo, echo_floor }
    }

    /// An echo of a timestamp, for the one who sent that.
    #[inline(always)]
    pub(crate) const fn echoed(&self, echo: u32) -> u32 {
        let echo = echo.wrapping_add(self.echo);
        let is_old = (echo.wrapping_sub(self.echo_floor) as i32) < 0;
        if is_old { self.echo_floor } else { echo }
    }
}

/// Options of [`QUICK`] bytes, in network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Stamps {
    kind: u32,
    stamp: u32,
    echo: u32,
}

impl Stamps {
    /// Whether there is nothing else.
    #[inline(always)]
    pub(crate) fn are_alone(&self) -> bool {
        self.kind == u32::from_ne_bytes([NOP, NOP, TIMESTAMPS, 10])
    }

    /// For the receiver; `change` is what that changes in the sum.
    #[inline(always)]
    pub(crate) fn translated(self, way: &Translation, change: &mut Change) -> Self {
        let shift = Shift::of(way);
        let stamp = u32::from_be(self.stamp).wrapping_add(shift.stamp).to_be();
        let echo = shift.echoed(u32::from_be(self.echo)).to_be();
        change.word(self.stamp, stamp);
        change.word(self.echo, echo);
        Self { stamp, echo, ..self }
    }
}
