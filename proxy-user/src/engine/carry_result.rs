//! What becomes of a pair.

use super::classifier::TrafficClass;
use super::packet::OffloadedFlow;
use super::{FlowEnd, SocketPair};

/// What the ladder makes of a pair.
pub(crate) enum CarryResult {
    /// An engine has carried it to its end.
    Finished(FlowEnd),
    /// It needs no sockets any more; whoever has this waits for its end.
    Offloaded(Box<OffloadedFlow>),
    /// It has outlived its beginnings; whoever has this carries it on
    /// ([`EngineSelector::carry_on`](super::EngineSelector::carry_handover)), in another task and on another thread, if need be.
    Handover(Box<Handover>),
}

/// What one engine made of a pair, for a while.
pub(super) enum StepResult {
    Finished(FlowEnd),
    Handover(Handover),
}

/// A pair still running, and nothing of it is in user space: another engine may carry it on.
pub(crate) struct Handover {
    pub(super) pair: SocketPair,
    /// What it was like of late.
    pub(super) class: TrafficClass,
}

impl From<StepResult> for CarryResult {
    fn from(result: StepResult) -> Self {
        match result {
            StepResult::Finished(end) => Self::Finished(end),
            StepResult::Handover(handover) => Self::Handover(Box::new(handover)),
        }
    }
}
