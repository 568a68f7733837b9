//! DNS resolvers with the configured name servers.

use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;

/// Largest number of cached answers.
const MAX_CACHED_ANSWERS: u64 = 1024;

/// Creates a resolver that queries these servers, or without any those of /etc/resolv.conf. It looks a
/// name up in /etc/hosts first.
///
/// # Errors
///
/// /etc/resolv.conf cannot be read, or the resolver cannot be created.
pub(crate) fn caching_resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    build_resolver(servers, MAX_CACHED_ANSWERS)
}

/// Creates a resolver without a cache, for records that change.
///
/// # Errors
///
/// As [`caching_resolver`].
pub(crate) fn uncached_resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    build_resolver(servers, 0)
}

fn build_resolver(servers: &[SocketAddr], cache_size: u64) -> Result<TokioResolver, NetError> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio()?,
        servers => {
            let servers = servers.iter().map(name_server_config).collect();
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.options_mut().cache_size = cache_size;
    builder.build()
}

fn name_server_config(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.to_vec())
}
