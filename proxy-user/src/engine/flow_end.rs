//! How flows end.

/// How a carried connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlowEnd {
    /// Both sides closed in order.
    Closed,
    /// The client's side broke (reset, timeout, unreachable); the back end was reset.
    ClientReset,
    /// The back end's side broke; the client was reset.
    BackendReset,
    /// Somebody wanted it cut (`snisplit flows cut`); both were reset.
    OperatorReset,
}

impl FlowEnd {
    /// A short word for counters and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::OperatorReset => "operator_reset",
        }
    }
}
