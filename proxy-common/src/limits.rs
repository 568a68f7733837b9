//! The arithmetic of limits: what a bound on one thing means for another.

use core::net::IpAddr;
use core::time::Duration;

/// Default of `max_client_hello_bytes`: bytes of the handshake message.
pub const DEFAULT_MAX_CLIENT_HELLO_LEN: usize = 65_536;

/// The most that `max_client_hello_bytes` may be set to: the receive queue must hold the whole hello, in
/// records of one byte each if the client likes, and `tcp_rmem[2]` is 6 MiB by default.
pub const MAX_CLIENT_HELLO_LEN_CEILING: usize = 262_144;

/// Bytes of the connection that a hello of `max_client_hello_bytes` can take: every byte in a record of its
/// own, header included, and the message's header likewise.
pub const fn max_client_hello_wire_len(client_hello_len: usize) -> usize {
    (client_hello_len + 4) * 6
}

/// File descriptors that one connection can hold at once: two sockets and, while bytes are in
/// flight both ways, two pipes.
pub const FDS_PER_CONNECTION: u64 = 6;

/// Connections that `nofile` descriptors carry at their worst, 64 kept back for everything else.
pub const fn max_connections_for_nofile(nofile: u64) -> u64 {
    nofile.saturating_sub(64) / FDS_PER_CONNECTION
}

/// Who counts as one client: an IPv4 address, or the IPv6 network that one customer gets (/64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourcePrefix(IpAddr);

impl SourcePrefix {
    /// The address, or the first one of the network.
    pub const fn network_address(self) -> IpAddr {
        self.0
    }

    /// The source that an address belongs to.
    pub fn from_address(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        })
    }
}

/// How long to leave the listener alone after accept failed: 5 ms, doubled up to 1 s.
///
/// A full descriptor table stays full until a connection ends; asking again at once burns a core.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptBackoff {
    failures: u32,
}

impl AcceptBackoff {
    /// The pause after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = Duration::from_millis(5 << self.failures.min(8));
        self.failures += 1;
        delay.min(Duration::from_secs(1))
    }

    /// It worked: start over.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A token bucket: `burst` at once, `rate` a second in the long run. Time is an argument.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    tokens_per_second: f64,
    burst: f64,
    tokens: f64,
    last_refill: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub const fn new(rate: u32, burst: u32) -> Self {
        Self {
            tokens_per_second: rate as f64,
            burst: burst as f64,
            tokens: burst as f64,
            last_refill: Duration::ZERO,
        }
    }

    /// Takes one token, if there is one. `now` counts from any fixed instant and does not go back.
    pub fn try_acquire(&mut self, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.last_refill).as_secs_f64();
        self.last_refill = self.last_refill.max(now);
        self.tokens = (self.tokens + elapsed * self.tokens_per_second).min(self.burst);
        let has_token = self.tokens >= 1.0;
        if has_token {
            self.tokens -= 1.0;
        }
        has_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let same = |a: &str, b: &str| {
            SourcePrefix::from_address(a.parse().unwrap())
                == SourcePrefix::from_address(b.parse().unwrap())
        };
        assert!(same("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
        assert!(same("2001:db8::1", "2001:db8::ffff:0:0:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
    }

    #[test]
    fn one_byte_records_take_six_bytes_each() {
        assert_eq!(max_client_hello_wire_len(0), 24);
        assert_eq!(max_client_hello_wire_len(DEFAULT_MAX_CLIENT_HELLO_LEN), 393_240);
    }

    #[test]
    fn descriptors_bound_connections() {
        assert_eq!(max_connections_for_nofile(0), 0);
        assert_eq!(max_connections_for_nofile(1024), 160);
        assert_eq!(max_connections_for_nofile(u64::MAX), (u64::MAX - 64) / 6);
    }

    #[test]
    fn a_bucket_holds_its_burst_and_fills_at_its_rate() {
        let mut bucket = TokenBucket::new(10, 3);
        let at = Duration::from_millis;
        let mut taken = |ms, n| (0..n).filter(|_| bucket.try_acquire(at(ms))).count();
        assert_eq!(taken(0, 5), 3);
        assert_eq!(taken(99, 5), 0);
        assert_eq!(taken(100, 5), 1);
        assert_eq!(taken(50, 5), 0, "time does not go back");
        assert_eq!(taken(60_000, 9), 3);
    }

    #[test]
    fn accept_backs_off_to_a_second_and_recovers() {
        let mut backoff = AcceptBackoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.next_delay().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_delay().as_millis(), 5);
    }
}
