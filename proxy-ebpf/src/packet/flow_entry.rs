//! Access to the entry of a flow, which programs on several CPUs read and write.

use core::arch::asm;

use snisplit_common::abi::packet::{FlowEntry, FlowState};

/// Returns the entry of a flow.
#[inline(always)]
pub(super) fn borrow<'program>(flow: *mut FlowEntry) -> &'program FlowEntry {
    // SAFETY: the pointer is from a look-up in `FLOWS`. Its entry lives until this program ends (RCU). Other
    // CPUs write numbers to it, of which each value is valid.
    unsafe { &*flow }
}

/// Returns the entry of a flow to write to it.
#[inline(always)]
pub(super) fn borrow_mut<'program>(flow: *mut FlowEntry) -> &'program mut FlowEntry {
    // SAFETY: as in `borrow`. A write of another CPU at the same time makes counts inexact, and the next
    // packet corrects the rest.
    unsafe { &mut *flow }
}

/// Returns the ID of a flow.
#[inline(always)]
pub(super) fn id(flow: *mut FlowEntry) -> u64 {
    borrow(flow).id
}

/// Reads the state of a flow, which another CPU may have changed.
#[inline(always)]
pub(super) fn state(flow: *mut FlowEntry) -> FlowState {
    // SAFETY: as in `borrow`. Only states of the enum are written there.
    unsafe { (&raw const (*flow).state).read_volatile() }
}

/// Changes the state of a flow if it is `from`, and returns whether it was.
///
/// Rust's core has no compare-and-swap for BPF (`atomic_cas` is off in the target). It is a full barrier,
/// like every atomic instruction with a result (Documentation/bpf/standardization/instruction-set.rst).
#[inline(always)]
pub(super) fn compare_exchange_state(flow: *mut FlowEntry, from: FlowState, to: FlowState) -> bool {
    let mut previous = from as u64;
    // SAFETY: as in `borrow`. The state is eight aligned bytes, and a state of the enum is written.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {to})",
            at = in(reg) &raw mut (*flow).state,
            to = in(reg) to as u64,
            inout("r0") previous,
        );
    }
    previous == from as u64
}
