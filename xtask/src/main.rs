//! Development tasks of the workspace. `cargo xtask --help` lists them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod dependencies;
mod fuzz;
mod lint;
mod machine;
mod run;
mod setup;
mod suite;

use suite::{Selection, TestPath};

/// Build, test and measure snisplit. Each command sets up what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install the eBPF toolchain and the peers of the tests (Debian; as root, or with sudo)
    Setup {
        /// List what would be installed, built and written, and where; change nothing
        #[arg(long)]
        dry_run: bool,
        /// Build cargo-deny too, which checks RustSec advisories (about 8 minutes)
        #[arg(long)]
        with_deny: bool,
    },
    /// Show the main job on real traffic, in namespaces of its own; ends by itself
    Demo,
    /// Check the house rules, then run the unit tests, then the root suite with real peers
    Test {
        /// Run only tests whose name, or whose file's name, contains this
        filter: Option<String>,
        /// Use this engine for agents whose test names none. Without it there are three
        /// passes, with auto, sockmap and packet; files that declare `//@ engines: named` run once
        #[arg(long)]
        engine: Option<String>,
        /// Run the root suite alone, on this kernel of Debian's, such as 6.1, in a machine that QEMU
        /// emulates: slow, hours without a filter
        #[arg(long)]
        kernel: Option<String>,
        /// Do not install anything; fail if something is missing
        #[arg(long)]
        no_setup: bool,
    },
    /// Run one file of the root suite, or one test: no lint, no unit tests
    It {
        /// FILE or FILE::TEST, such as split or split::early_data_reaches_the_back_end; part of a test's
        /// name is enough
        #[arg(value_name = "FILE[::TEST]")]
        path: String,
        /// Use this engine for agents whose test names none [default: auto]
        #[arg(long)]
        engine: Option<String>,
        /// Do not install anything; fail if something is missing
        #[arg(long)]
        no_setup: bool,
        /// Pass these arguments to the test program, such as --nocapture
        #[arg(last = true)]
        libtest_args: Vec<String>,
    },
    /// Check the house rules: imports, function length, unsafe code, retired words
    Lint {
        /// Print the import graph of each crate instead
        #[arg(long)]
        graph: bool,
        /// Print the graph in Graphviz's language
        #[arg(long, requires = "graph")]
        dot: bool,
        /// Print the graph of this package only, such as snisplit
        #[arg(long, requires = "graph", value_name = "NAME")]
        package: Option<String>,
    },
    /// Open a shell in the lab: client, proxy, back ends, and a running agent
    Lab,
    /// Compare engines and peers, interleaved, and write the tables and the chart of the benchmark page
    ///
    /// With --load or --candidate, measure that selection only and leave the page as it is.
    Bench {
        /// Rounds; each runs every candidate once
        #[arg(long, default_value_t = 5, value_name = "COUNT")]
        rounds: usize,
        /// Duration of each measurement, in seconds
        #[arg(long, default_value_t = 2, value_name = "SECONDS")]
        seconds: u64,
        /// Measure only loads with this in their names; may be repeated
        #[arg(long, value_delimiter = ',', value_name = "NAME")]
        load: Vec<String>,
        /// Measure only this candidate; may be repeated
        #[arg(long, value_delimiter = ',', value_name = "NAME")]
        candidate: Vec<String>,
        /// Write the measurements to this JSON file, and read them from there to redraw
        /// [default: target/bench.json of the workspace]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Write the page from the last measurements, without measuring
        #[arg(long, conflicts_with_all = ["load", "candidate"])]
        redraw: bool,
    },
    /// Fuzz a parser, seeded with the recorded hellos
    Fuzz {
        /// Target: client_hello, routes or proxy_protocol
        target: String,
        /// Duration, in seconds
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
    /// Run every check that a commit must pass: format, lint, dependencies, clippy, rustdoc, tests
    Ci {
        /// Leave out the tests
        #[arg(long = "static")]
        is_static: bool,
    },
}

fn main() -> ExitCode {
    match run_verb(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_verb(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup { dry_run: true, with_deny } => setup::print_plan(with_deny),
        Verb::Setup { with_deny, .. } => {
            setup::all()?;
            if with_deny { setup::deny() } else { Ok(()) }
        }
        Verb::Demo => suite::run_program("demo", &[], &setup::all()?),
        Verb::Lab => suite::run_program("lab", &[], &setup::all()?),
        Verb::Test { filter, engine, kernel, no_setup } => {
            let selection = Selection { filter: filter.as_deref(), engine: engine.as_deref() };
            if kernel.is_none() {
                lint::check()?;
            }
            let peers = peers(no_setup)?;
            match kernel {
                Some(kernel) => machine::test(&kernel, selection, &peers),
                None => suite::test(selection, &peers, &[]),
            }
        }
        Verb::It { path, engine, no_setup, libtest_args } => {
            let (path, peers) = (TestPath::parse(&path), peers(no_setup)?);
            suite::run_one(&path, engine.as_deref(), &peers, &libtest_args)
        }
        Verb::Lint { graph: true, dot, package, .. } => lint::print_graph(package.as_deref(), dot),
        Verb::Lint { .. } => lint::check(),
        Verb::Bench { rounds, seconds, load, candidate, out, redraw } => {
            let out = out.unwrap_or_else(|| run::root().join("target/bench.json"));
            bench::run(rounds, seconds, redraw, &[candidate, load].concat(), &out)
        }
        Verb::Fuzz { target, seconds } => fuzz::run(&target, seconds),
        Verb::Ci { is_static } => ci::run(is_static),
    }
}

/// Folder of the peers from PyPI, after set-up unless it is left out.
fn peers(no_setup: bool) -> Result<PathBuf> {
    if no_setup { setup::peers() } else { setup::all() }
}
