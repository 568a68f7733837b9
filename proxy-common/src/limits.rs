//! The arithmetic of limits: what a bound on one thing means for another.

use core::net::IpAddr;
use core::time::Duration;

/// The default bound on a ClientHello, bytes of its handshake message (design §4).
pub const HELLO_BYTES: usize = 65_536;

/// The most that `hello_bytes` may be set to: the receive queue must hold the whole hello, in
/// records of one byte each if the client likes, and `tcp_rmem[2]` is 6 MiB by default.
pub const HELLO_BYTES_MAX: usize = 262_144;

/// Bytes of the connection that a hello of `hello_bytes` can take: every byte in a record of its
/// own, header included, and the message's header likewise.
pub const fn hello_wire_bytes(hello_bytes: usize) -> usize {
    (hello_bytes + 4) * 6
}

/// File descriptors that one connection can hold at once: two sockets and, while bytes are in
/// flight both ways, two pipes.
pub const FDS_PER_CONNECTION: u64 = 6;

/// Connections that `nofile` descriptors carry at their worst, 64 kept back for everything else.
pub const fn connections_within(nofile: u64) -> u64 {
    nofile.saturating_sub(64) / FDS_PER_CONNECTION
}

/// Who counts as one client: an IPv4 address, or the IPv6 network that one customer gets (/64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl Source {
    /// The address, or the first one of the network.
    pub const fn address(self) -> IpAddr {
        self.0
    }

    /// The source that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
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
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub fn fail(&mut self) -> Duration {
        let pause = Duration::from_millis(5 << self.failures.min(8));
        self.failures += 1;
        pause.min(Duration::from_secs(1))
    }

    /// It worked: start over.
    pub const fn succeed(&mut self) {
        self.failures = 0;
    }
}

/// A token bucket: `burst` at once, `rate` a second in the long run. Time is an argument.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Duration,
}

impl Bucket {
    /// A full bucket.
    pub const fn new(rate: u32, burst: u32) -> Self {
        Self { rate: rate as f64, burst: burst as f64, tokens: burst as f64, last: Duration::ZERO }
    }

    /// Takes one token, if there is one. `now` counts from any fixed instant and does not go back.
    pub fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.last).as_secs_f64();
        self.last = self.last.max(now);
        self.tokens = (self.tokens + passed * self.rate).min(self.burst);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_address_or_a_64() {
        let same =
            |a: &str, b: &str| Source::of(a.parse().unwrap()) == Source::of(b.parse().unwrap());
        assert!(same("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
        assert!(same("2001:db8::1", "2001:db8::ffff:0:0:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
    }

    #[test]
    fn one_byte_records_take_six_bytes_each() {
        assert_eq!(hello_wire_bytes(0), 24);
        assert_eq!(hello_wire_bytes(HELLO_BYTES), 393_240);
    }

    #[test]
    fn descriptors_bound_connections() {
        assert_eq!(connections_within(0), 0);
        assert_eq!(connections_within(1024), 160);
        assert_eq!(connections_within(u64::MAX), (u64::MAX - 64) / 6);
    }

    #[test]
    fn a_bucket_holds_its_burst_and_fills_at_its_rate() {
        let mut bucket = Bucket::new(10, 3);
        let at = Duration::from_millis;
        let mut taken = |ms, n| (0..n).filter(|_| bucket.take(at(ms))).count();
        assert_eq!(taken(0, 5), 3);
        assert_eq!(taken(99, 5), 0);
        assert_eq!(taken(100, 5), 1);
        assert_eq!(taken(50, 5), 0, "time does not go back");
        assert_eq!(taken(60_000, 9), 3);
    }

    #[test]
    fn accept_backs_off_to_a_second_and_recovers() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.fail().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.succeed();
        assert_eq!(backoff.fail().as_millis(), 5);
    }
}
