//! Name servers to ask.

use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;

/// Answers to keep, at most.
const CACHE: u64 = 1024;

/// Asks these servers; without any, those of /etc/resolv.conf. /etc/hosts comes first in either case.
pub(crate) fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    build(servers, CACHE)
}

/// The same without a memory, for what is about to change.
pub(crate) fn forgetful(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    build(servers, 0)
}

fn build(servers: &[SocketAddr], cache: u64) -> Result<TokioResolver, NetError> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio()?,
        servers => {
            let servers = servers.iter().map(server).collect();
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.options_mut().cache_size = cache;
    builder.build()
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let both = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, both.to_vec())
}
