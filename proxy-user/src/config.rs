//! Configuration: a TOML file, flags that win over it, and diagnostics.
//!
//! `schema` has the tables and keys as they are written. `validate` turns them into [`Config`] in
//! one step, or reports all problems. `check` and `run` use the same code. Nothing here probes the
//! kernel, and [`Config`] holds no state of the running agent.

pub mod acme;
mod agent;
mod backend_addr;
mod choices;
pub mod defaults;
mod diagnostic;
mod file;
mod flags;
pub(crate) mod keys;
mod limits;
mod load;
mod located;
mod options;
mod packet;
mod route;
mod route_table;
mod schema;
pub mod terminate;
mod validate;
mod value;

pub use acme::AcmeConfig;
pub use agent::{Config, Listener};
pub use backend_addr::BackendAddr;
pub use choices::{
    Challenge, DnsProviderKind, HealthCheckKind, HmacAlgorithm, HookChoice, SourceAddress, Starttls,
};
pub use diagnostic::ConfigErrors;
pub use flags::Overrides;
pub(crate) use flags::{FLAGS_HEADING, flag_for_key};
pub use limits::Limits;
pub use located::Origin;
pub use packet::PacketConfig;
pub use route::{Backend, HealthCheck, Route};
pub use terminate::Terminate;
