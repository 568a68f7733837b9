//! Program of the sockmap engine.

mod backlog;
mod classify;
mod helpers;
mod maps;
pub(crate) mod verdict;
