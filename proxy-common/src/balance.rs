//! Balancing: the order in which to try a route's back ends.

use core::net::IpAddr;

use crate::limits::SourcePrefix;

/// Balancing policy of a route (`balance`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancePolicy {
    /// In turn, in proportion to the weights.
    #[default]
    RoundRobin,
    /// The back end with the fewest connections in proportion to its weight.
    LeastConnections,
    /// The same back end for each source, as long as it is configured and up (rendezvous hashing).
    SourceHash,
}

/// State of one back end.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'c> {
    /// Address, as written in the configuration.
    pub key: &'c str,
    /// Share of the connections in proportion to the others. 0: only if no other back end answers.
    pub weight: f64,
    /// Number of open connections.
    pub active_connections: usize,
    /// Whether health checks and connects consider it up.
    pub is_up: bool,
}

/// Returns the indices of all candidates in the order to try them.
///
/// Candidates that are down come last, because their state may be wrong. At that point an attempt costs the
/// client nothing.
pub fn rank_candidates(
    balance: BalancePolicy,
    pick_number: usize,
    client: IpAddr,
    candidates: &[Candidate<'_>],
) -> Vec<usize> {
    let mut ranking: Vec<usize> = (0..candidates.len()).collect();
    match balance {
        BalancePolicy::RoundRobin => {
            let first_pick = weighted_round_robin(pick_number, candidates);
            ranking.rotate_left(first_pick);
        }
        BalancePolicy::LeastConnections => sort_by_score(&mut ranking, |index| {
            let Candidate { active_connections: connections, weight, .. } = candidates[index];
            (connections + 1) as f64 / weight.max(f64::MIN_POSITIVE)
        }),
        BalancePolicy::SourceHash => sort_by_score(&mut ranking, |index| {
            rendezvous_score(&SourcePrefix::from_address(client), candidates[index].key)
                / candidates[index].weight.max(f64::MIN_POSITIVE)
        }),
    }
    ranking.sort_by_key(|&index| !candidates[index].is_up);
    ranking
}

fn sort_by_score(ranking: &mut [usize], rank: impl Fn(usize) -> f64) {
    ranking.sort_by(|&a, &b| rank(a).total_cmp(&rank(b)));
}

/// Returns the candidate for a turn.
///
/// In each round, each candidate that is up gets turns exactly in proportion to its weight. A step near the
/// golden section of the round, and coprime to its length, spreads the turns of a candidate over the round.
fn weighted_round_robin(pick_number: usize, candidates: &[Candidate<'_>]) -> usize {
    // Weights are whole numbers, except during a slow start, which grows in tenths.
    let tenths = |c: &Candidate<'_>| if c.is_up { (c.weight * 10.0).round() as u64 } else { 0 };
    let weight_unit = candidates.iter().map(tenths).fold(0, gcd);
    if weight_unit == 0 {
        return pick_number % candidates.len().max(1);
    }
    let cycle_len: u64 = candidates.iter().map(|candidate| tenths(candidate) / weight_unit).sum();
    let golden_step = cycle_len * 618 / 1000;
    let step = (golden_step.max(1)..).find(|step| gcd(*step, cycle_len) == 1).unwrap_or(1);
    let mut slot = (pick_number as u64 % cycle_len) * step % cycle_len;
    let contains_slot = |candidate: &Candidate<'_>| {
        let slots = tenths(candidate) / weight_unit;
        let is_match = slot < slots;
        slot = slot.saturating_sub(slots);
        is_match
    };
    candidates.iter().position(contains_slot).unwrap_or(0)
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Returns an exponentially distributed number for a source and a key.
///
/// The candidate with the smallest quotient of number and weight wins. So each one gets its share, and only
/// the sources of a removed candidate move to others.
fn rendezvous_score(source: &SourcePrefix, key: &str) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut absorb = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    match source.network_address() {
        IpAddr::V4(ip) => absorb(&ip.octets()),
        IpAddr::V6(ip) => absorb(&ip.octets()),
    }
    absorb(key.as_bytes());
    // The high bits of FNV are weak for short inputs, so the finaliser of splitmix64 mixes them again.
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
        Candidate { key, weight, active_connections: 0, is_up: true }
    }

    fn shares(balance: BalancePolicy, candidates: &[Candidate<'_>]) -> Vec<usize> {
        let mut shares = vec![0; candidates.len()];
        for turn in 0..10_000_u32 {
            let client = IpAddr::V4((0x0a00_0000 + turn).into());
            shares[rank_candidates(balance, turn as usize, client, candidates)[0]] += 1;
        }
        shares
    }

    #[test]
    fn shares_follow_weights() {
        let all = [candidate("a", 1.0), candidate("b", 3.0), candidate("c", 0.0)];
        for balance in [BalancePolicy::RoundRobin, BalancePolicy::SourceHash] {
            let shares = shares(balance, &all);
            assert!((2_300..2_700).contains(&shares[0]), "{balance:?} {shares:?}");
            assert!((7_300..7_700).contains(&shares[1]), "{balance:?} {shares:?}");
            assert_eq!(shares[2], 0, "{balance:?}");
        }
    }

    #[test]
    fn a_cycle_is_exact_and_evenly_spread() {
        let firsts = |all: &[Candidate<'_>], turns| {
            (0..turns)
                .map(|turn| rank_candidates(BalancePolicy::RoundRobin, turn, CLIENT, all)[0])
                .collect()
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
        all[0].active_connections = 5;
        all[1].active_connections = 10;
        assert_eq!(rank_candidates(BalancePolicy::LeastConnections, 0, CLIENT, &all), [1, 0]);
        all[1].active_connections = 13;
        assert_eq!(rank_candidates(BalancePolicy::LeastConnections, 0, CLIENT, &all), [0, 1]);
    }

    #[test]
    fn a_source_stays_when_another_back_end_goes() {
        let all = ["a", "b", "c", "d"].map(|key| candidate(key, 1.0));
        for n in 0..1_000 {
            let client = IpAddr::V4((0x0a00_0000 + n).into());
            let first = rank_candidates(BalancePolicy::SourceHash, 0, client, &all)[0];
            let fewer: Vec<_> = all.iter().copied().filter(|one| one.key != "b").collect();
            let now = fewer[rank_candidates(BalancePolicy::SourceHash, 7, client, &fewer)[0]].key;
            assert!(all[first].key == "b" || all[first].key == now);
        }
    }

    #[test]
    fn backends_that_are_down_are_ranked_last() {
        let mut all = ["a", "b", "c"].map(|key| candidate(key, 1.0));
        all[1].is_up = false;
        for balance in
            [BalancePolicy::RoundRobin, BalancePolicy::LeastConnections, BalancePolicy::SourceHash]
        {
            for turn in 0..10 {
                let order = rank_candidates(balance, turn, CLIENT, &all);
                assert_eq!((order.len(), order[2]), (3, 1), "{balance:?}");
            }
        }
    }
}
