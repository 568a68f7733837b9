//! Which back end first, which next: pure in what is known of each.

use core::net::IpAddr;

use crate::limits::Source;

/// How connections are spread (`balance`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// To the one with the fewest connections for its weight.
    LeastConnections,
    /// Each source to the same one, as long as that one is there (rendezvous hashing).
    Source,
}

/// What is known of one back end.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'c> {
    /// Its address, as it was written.
    pub key: &'c str,
    /// Its share beside the others; 0 is nothing, unless nobody else answers.
    pub weight: f64,
    /// Connections that it has now.
    pub connections: usize,
    /// Whether it is believed to answer.
    pub is_up: bool,
}

/// All candidates, the one to try first in front. Those that are down come last: believing may be
/// wrong, and trying costs a client nothing that it has not lost already.
pub fn order(
    balance: Balance,
    turn: usize,
    client: IpAddr,
    candidates: &[Candidate<'_>],
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    match balance {
        Balance::RoundRobin => {
            let first = in_turn(turn, candidates);
            order.rotate_left(first);
        }
        Balance::LeastConnections => sort(&mut order, |index| {
            let Candidate { connections, weight, .. } = candidates[index];
            (connections + 1) as f64 / weight.max(f64::MIN_POSITIVE)
        }),
        Balance::Source => sort(&mut order, |index| {
            distance(&Source::of(client), candidates[index].key)
                / candidates[index].weight.max(f64::MIN_POSITIVE)
        }),
    }
    order.sort_by_key(|&index| !candidates[index].is_up);
    order
}

fn sort(order: &mut [usize], rank: impl Fn(usize) -> f64) {
    order.sort_by(|&a, &b| rank(a).total_cmp(&rank(b)));
}

/// Turn after turn, each candidate that is up gets a part of the turns like its weight, exactly so
/// in each round. A step near the golden section of the round, and prime to it, spreads the turns of
/// one candidate over the round.
fn in_turn(turn: usize, candidates: &[Candidate<'_>]) -> usize {
    // Weights are whole numbers but for a slow start, which grows by tenths.
    let tenths = |c: &Candidate<'_>| if c.is_up { (c.weight * 10.0).round() as u64 } else { 0 };
    let unit = candidates.iter().map(tenths).fold(0, gcd);
    if unit == 0 {
        return turn % candidates.len().max(1);
    }
    let round: u64 = candidates.iter().map(|candidate| tenths(candidate) / unit).sum();
    let golden = round * 618 / 1000;
    let step = (golden.max(1)..).find(|step| gcd(*step, round) == 1).unwrap_or(1);
    let mut left = (turn as u64 % round) * step % round;
    let mine = |candidate: &Candidate<'_>| {
        let turns = tenths(candidate) / unit;
        let is_mine = left < turns;
        left = left.saturating_sub(turns);
        is_mine
    };
    candidates.iter().position(mine).unwrap_or(0)
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// An exponentially distributed number for a source and a key: the smallest over weight wins, which
/// gives each key its share, and a key that goes takes only its own sources along.
fn distance(source: &Source, key: &str) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    match source.address() {
        IpAddr::V4(ip) => eat(&ip.octets()),
        IpAddr::V6(ip) => eat(&ip.octets()),
    }
    eat(key.as_bytes());
    // FNV's high bits are weak for short inputs: mix once more (the finaliser of splitmix64).
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = ((hash ^ hash >> 31) >> 11) as f64 / (1_u64 << 53) as f64;
    -(uniform.max(f64::MIN_POSITIVE)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1));

    fn candidate(key: &str, weight: f64) -> Candidate<'_> {
        Candidate { key, weight, connections: 0, is_up: true }
    }

    fn shares(balance: Balance, candidates: &[Candidate<'_>]) -> Vec<usize> {
        let mut shares = vec![0; candidates.len()];
        for turn in 0..10_000_u32 {
            let client = IpAddr::V4((0x0a00_0000 + turn).into());
            shares[order(balance, turn as usize, client, candidates)[0]] += 1;
        }
        shares
    }

    #[test]
    fn shares_follow_weights() {
        let all = [candidate("a", 1.0), candidate("b", 3.0), candidate("c", 0.0)];
        for balance in [Balance::RoundRobin, Balance::Source] {
            let shares = shares(balance, &all);
            assert!((2_300..2_700).contains(&shares[0]), "{balance:?} {shares:?}");
            assert!((7_300..7_700).contains(&shares[1]), "{balance:?} {shares:?}");
            assert_eq!(shares[2], 0, "{balance:?}");
        }
    }

    #[test]
    fn a_round_is_exact_and_spread() {
        let firsts = |all: &[Candidate<'_>], turns| {
            (0..turns).map(|turn| order(Balance::RoundRobin, turn, CLIENT, all)[0]).collect()
        };
        let equal: Vec<usize> = firsts(&[candidate("a", 1.0), candidate("b", 1.0)], 6);
        assert_eq!(equal, [0, 1, 0, 1, 0, 1]);
        let five: Vec<usize> = firsts(&[candidate("a", 2.0), candidate("b", 3.0)], 5);
        assert_eq!(five.iter().filter(|first| **first == 0).count(), 2);
        assert!(five.windows(3).all(|w| w[0] != w[1] || w[1] != w[2]), "{five:?}");
        let slow: Vec<usize> = firsts(&[candidate("a", 0.1), candidate("b", 1.0)], 11);
        assert_eq!(slow.iter().filter(|first| **first == 0).count(), 1);
        let none: Vec<usize> = firsts(&[candidate("a", 0.0), candidate("b", 0.0)], 2);
        assert_eq!(none, [0, 1]);
    }

    #[test]
    fn the_fewest_connections_for_the_weight() {
        let mut all = [candidate("a", 1.0), candidate("b", 2.0)];
        all[0].connections = 5;
        all[1].connections = 10;
        assert_eq!(order(Balance::LeastConnections, 0, CLIENT, &all), [1, 0]);
        all[1].connections = 13;
        assert_eq!(order(Balance::LeastConnections, 0, CLIENT, &all), [0, 1]);
    }

    #[test]
    fn a_source_stays_when_another_back_end_goes() {
        let all = ["a", "b", "c", "d"].map(|key| candidate(key, 1.0));
        for n in 0..1_000 {
            let client = IpAddr::V4((0x0a00_0000 + n).into());
            let first = order(Balance::Source, 0, client, &all)[0];
            let fewer: Vec<_> = all.iter().copied().filter(|one| one.key != "b").collect();
            let now = fewer[order(Balance::Source, 7, client, &fewer)[0]].key;
            assert!(all[first].key == "b" || all[first].key == now);
        }
    }

    #[test]
    fn what_is_down_comes_last_but_comes() {
        let mut all = ["a", "b", "c"].map(|key| candidate(key, 1.0));
        all[1].is_up = false;
        for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Source] {
            for turn in 0..10 {
                let order = order(balance, turn, CLIENT, &all);
                assert_eq!((order.len(), order[2]), (3, 1), "{balance:?}");
            }
        }
    }
}
