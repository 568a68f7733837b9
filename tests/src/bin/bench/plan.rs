//! What the command line asks for.

use std::time::Duration;

use crate::candidate;
use crate::load::Load;

/// Word of the command line for the comparison with a direct link, and nothing else.
const VS_DIRECT: &str = "vs-direct";

/// Loads, candidates and durations of a run.
pub(crate) struct Plan {
    pub(crate) rounds: u64,
    /// Duration of one measurement.
    pub(crate) time: Duration,
    /// File for the results.
    pub(crate) out: String,
    /// Candidates that are compared with each other.
    pub(crate) candidates: Vec<&'static str>,
    /// Candidates that are compared with a direct link.
    pub(crate) vs_direct: Vec<&'static str>,
    pub(crate) loads: Vec<Load>,
    pub(crate) compares_candidates: bool,
    pub(crate) compares_with_direct: bool,
    /// Whether the run has all loads and both comparisons, so that its results are written.
    pub(crate) is_complete: bool,
}

impl Plan {
    /// Parses the command line: rounds, seconds, file, and then names of candidates and parts of names of loads.
    pub(crate) fn from_args() -> Self {
        let mut args = std::env::args().skip(1);
        let mut number = |what: &str| args.next().and_then(|arg| arg.parse().ok()).expect(what);
        let (rounds, time) = (number("rounds"), Duration::from_secs(number("seconds")));
        let out = args.next().expect("a file for the results");
        let (names, rest): (Vec<String>, Vec<String>) =
            args.partition(|arg| candidate::is_candidate(arg));
        let (comparisons, load_names): (Vec<String>, Vec<String>) =
            rest.into_iter().partition(|arg| arg == VS_DIRECT);
        let is_complete = load_names.is_empty() && comparisons.is_empty();
        let loads: Vec<Load> = Load::matching(&load_names).collect();
        assert!(
            !loads.is_empty(),
            "no load and no candidate has one of these names: {load_names:?}"
        );
        Self {
            rounds,
            time,
            out,
            candidates: candidate::selected(&candidate::ALL, &names),
            vs_direct: candidate::selected(&candidate::COMPARED_WITH_DIRECT, &names),
            loads,
            compares_candidates: comparisons.is_empty(),
            compares_with_direct: is_complete || !comparisons.is_empty(),
            is_complete,
        }
    }
}
