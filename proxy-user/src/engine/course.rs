//! What becomes of a pair.

use super::pace::Kind;
use super::packet::Flight;
use super::{End, Pair};

/// What the ladder makes of a pair.
pub(crate) enum Course {
    /// An engine has carried it to its end.
    Ended(End),
    /// It needs no sockets any more; whoever has this waits for its end.
    Flying(Box<Flight>),
    /// It has outlived its beginnings; whoever has this carries it on
    /// ([`Ladder::carry_on`](super::Ladder::carry_on)), in another task and on another thread, if need be.
    Grown(Box<Grown>),
}

/// What one engine made of a pair, for a while.
pub(super) enum Carried {
    Ended(End),
    Grown(Grown),
}

/// A pair still running, and nothing of it is in user space: another engine may carry it on.
pub(crate) struct Grown {
    pub(super) pair: Pair,
    /// What it was like of late.
    pub(super) kind: Kind,
}

impl From<Carried> for Course {
    fn from(carried: Carried) -> Self {
        match carried {
            Carried::Ended(end) => Self::Ended(end),
            Carried::Grown(grown) => Self::Grown(Box::new(grown)),
        }
    }
}
