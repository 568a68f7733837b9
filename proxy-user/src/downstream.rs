//! The side of the client: accept, admission, what comes before a decision, and rejection.

pub(crate) mod accept;
pub(crate) mod acceptor_threads;
pub(crate) mod admission;
pub(crate) mod preamble;
pub(crate) mod reject;
