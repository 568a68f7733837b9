//! Limits on resources, and the arithmetic between them.

use core::net::IpAddr;
use core::time::Duration;

/// Default of `max_client_hello_bytes`: the largest handshake message in bytes, without its header.
pub const DEFAULT_MAX_CLIENT_HELLO_LEN: usize = 65_536;

/// Largest value of `max_client_hello_bytes`.
///
/// The receive queue must hold the whole hello, which a client may send in records of one byte each. The
/// default of `tcp_rmem[2]` is 6 MiB.
pub const MAX_CLIENT_HELLO_LEN_CEILING: usize = 262_144;

/// Returns the largest number of bytes on the wire for a hello of `client_hello_len` bytes.
///
/// Each byte of the message and of its header may have a record of its own, with a header of 5 bytes.
pub const fn max_client_hello_wire_len(client_hello_len: usize) -> usize {
    (client_hello_len + 4) * 6
}

/// Largest number of file descriptors of one connection: two sockets, and two pipes of two descriptors each
/// while data moves in both directions.
pub const FDS_PER_CONNECTION: u64 = 6;

/// Returns the number of connections that a limit of `nofile` descriptors allows. 64 descriptors are reserved
/// for other purposes.
pub const fn max_connections_for_nofile(nofile: u64) -> u64 {
    nofile.saturating_sub(64) / FDS_PER_CONNECTION
}

/// Source of connections that counts as one client: an IPv4 address or an IPv6 /64 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourcePrefix(IpAddr);

impl SourcePrefix {
    /// Returns the IPv4 address, or the first address of the prefix.
    pub const fn network_address(self) -> IpAddr {
        self.0
    }

    /// Returns the source of an address.
    pub fn from_address(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        })
    }
}

/// Delay after a failed accept(2): 5 ms, doubled for each further failure up to 1 s.
///
/// A full descriptor table stays full until a connection ends. Calls without a delay would use a whole core.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptBackoff {
    failures: u32,
}

impl AcceptBackoff {
    /// Returns the delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = Duration::from_millis(5 << self.failures.min(8));
        self.failures += 1;
        delay.min(Duration::from_secs(1))
    }

    /// Starts again at the shortest delay, after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Token bucket: `burst` tokens at once, and `rate` tokens per second on average.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    tokens_per_second: f64,
    burst: f64,
    tokens: f64,
    last_refill: Duration,
}

impl TokenBucket {
    /// Makes a full bucket.
    pub const fn new(rate: u32, burst: u32) -> Self {
        Self {
            tokens_per_second: rate as f64,
            burst: burst as f64,
            tokens: burst as f64,
            last_refill: Duration::ZERO,
        }
    }

    /// Takes one token, and returns whether there was one. `now` is the time since any fixed instant.
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
