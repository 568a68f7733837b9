//! What cargo cannot say. `cargo xtask --help` lists the verbs.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod fuzz;
mod lint;
mod machine;
mod run;
mod setup;
mod suite;

/// Tasks of the snisplit workspace. Each sets up what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or install the eBPF toolchain and the peers of the tests (Debian, as root or by sudo)
    Setup,
    /// Show the main job on real traffic, in namespaces of its own; ends by itself
    Demo,
    /// Unit tests, house rules, then the root suite with real peers in fresh namespaces
    Test {
        /// Only tests whose name, or whose file's name, contains this
        filter: Option<String>,
        /// The engine of agents whose test names none. Without it the root suite runs with the default
        /// and then, the tests that name their engine left out, once more with sockmap
        #[arg(long)]
        engine: Option<String>,
        /// The root suite alone, on this kernel of Debian's, such as 6.1, in a machine that QEMU emulates:
        /// slow, hours without a filter
        #[arg(long)]
        kernel: Option<String>,
    },
    /// Check the house rules: imports, function length, unsafe code, retired words
    Lint {
        /// List the findings of rules that are not enforced, too
        #[arg(long)]
        report: bool,
        /// Print the import graph of each crate instead
        #[arg(long, conflicts_with = "report")]
        graph: bool,
        /// Print the graph in Graphviz's language
        #[arg(long, requires = "graph")]
        dot: bool,
        /// Print the graph of this package only, such as snisplit
        #[arg(long, requires = "graph", value_name = "NAME")]
        package: Option<String>,
    },
    /// A shell in the lab: client | proxy | back ends, an agent running
    Lab,
    /// Compare engines and peers, interleaved, and write docs/benchmarks.md
    Bench {
        /// Rounds; each runs every candidate once
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds that each measurement takes
        #[arg(long, default_value_t = 2)]
        seconds: u64,
        /// Draw what was measured last, from target/bench.json
        #[arg(long)]
        again: bool,
        /// Only these candidates, or loads with these words in their names, or with `beside` only the
        /// comparison with a cable; the page stays as it is.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Fuzz a target of tests/fuzz, seeded with the recorded client hellos
    Fuzz {
        /// client_hello, routes or proxy_protocol
        target: String,
        /// How long
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Everything that must pass before a commit: formatting, clippy, lint, test
    Ci,
}

fn main() -> ExitCode {
    match act(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup => setup::all().map(drop),
        Verb::Demo => suite::in_lab("demo", &[]),
        Verb::Lab => suite::in_lab("lab", &[]),
        Verb::Test { filter, engine, kernel } => {
            lint::check(false)?;
            let (filter, engine) = (filter.as_deref(), engine.as_deref());
            match kernel {
                Some(kernel) => machine::test(&kernel, filter, engine),
                None => suite::test(filter, engine),
            }
        }
        Verb::Lint { graph: true, dot, package, .. } => lint::print_graph(package.as_deref(), dot),
        Verb::Lint { report, .. } => lint::check(report),
        Verb::Bench { rounds, seconds, again, only } => bench::run(rounds, seconds, again, &only),
        Verb::Fuzz { target, seconds } => fuzz::run(&target, seconds),
        Verb::Ci => {
            run::loud(run::cargo().args(["fmt", "--check"]))?;
            setup::toolchain()?;
            let clippy = ["clippy", "--workspace", "--exclude", "snisplit-ebpf", "--all-targets"];
            run::loud(run::cargo().args(clippy).args(["--", "-D", "warnings"]))?;
            lint::check(false)?;
            suite::test(None, None)
        }
    }
}
