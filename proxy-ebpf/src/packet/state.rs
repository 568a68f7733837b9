//! Compare-and-swap, which Rust's core has not for BPF (`atomic_cas` is off in the target).

use core::arch::asm;

use snisplit_common::abi::packet::{FlowEntry, FlowState};

/// The state as another CPU may have left it.
#[inline(always)]
pub(super) fn load(flow: *const FlowEntry) -> FlowState {
    // SAFETY: the entry lives until this program ends (RCU); every number that is ever written there is
    // one of the enum's.
    unsafe { (&raw const (*flow).state).read_volatile() }
}

/// Moves the state on; the answer is what it was, and whether it was `from`. A full barrier, as every
/// atomic instruction with a result is (Documentation/bpf/standardization/instruction-set.rst).
#[inline(always)]
pub(super) fn compare_exchange(flow: *mut FlowEntry, from: FlowState, to: FlowState) -> bool {
    let mut previous = from as u64;
    // SAFETY: eight aligned bytes of a live entry; a number of the enum is written.
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
