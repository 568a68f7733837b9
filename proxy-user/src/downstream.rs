//! The client's side: listeners, limits, what a client sends before the decision, and rejection.

pub(crate) mod accept;
pub(crate) mod acceptor_threads;
pub(crate) mod admission;
pub(crate) mod preamble;
pub(crate) mod reject;
