//! Defaults of the configuration. Help texts and `docs/reference` show these values.

use std::ops::RangeInclusive;
use std::time::Duration;

/// `instance`
pub const INSTANCE: &str = "default";
/// `drain_timeout`
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// `listener.client_hello_timeout`
pub const CLIENT_HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// `backends.weight`
pub const WEIGHT: u32 = 1;
/// `health_check.interval`
pub const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// `health_check.rise`
pub const RISE: u32 = 2;
/// `health_check.fall`
pub const FALL: u32 = 3;
/// `acme.state_dir`
pub const STATE_DIR: &str = "/var/lib/snisplit";
/// `acme.dns.propagation_timeout`
pub const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(120);
/// `limits.max_client_hello_bytes`
pub const MAX_CLIENT_HELLO_BYTES: u32 =
    snisplit_common::limits::DEFAULT_MAX_CLIENT_HELLO_LEN as u32;
/// `limits.connect_timeout`
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// `limits.max_connections`
pub const MAX_CONNECTIONS: u32 = 100_000;
/// `limits.max_pending_handshakes`
pub const MAX_PENDING_HANDSHAKES: u32 = 10_000;
/// `limits.max_connections_per_source`
pub const MAX_CONNECTIONS_PER_SOURCE: u32 = 1_000;
/// `limits.accept_rate`: no limit.
pub const ACCEPT_RATE: u32 = 0;
/// `limits.keepalive`
pub const KEEPALIVE: Option<Duration> = Some(Duration::from_secs(60));
/// `limits.first_byte_timeout`, `limits.idle_timeout`, `limits.user_timeout`, `slow_start`: `off`.
pub const OFF: Option<Duration> = None;
/// `packet.ports`: below `net.ipv4.ip_local_port_range`, which starts at 32768 in Linux.
pub const PACKET_PORTS: RangeInclusive<u16> = 16_384..=32_767;
/// `packet.xdp`
pub const PACKET_XDP: bool = false;
/// Configuration file that is read when no `-c` is given.
pub const CONFIG_FILE: &str = "/etc/snisplit/snisplit.toml";
