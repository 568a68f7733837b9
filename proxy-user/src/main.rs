//! The `snisplit` binary: parse the command line, do one verb, say how it went.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use snisplit::cli::{Cli, Setup, Verb};
use snisplit::config::{Config, Overrides, Problems};
use snisplit::daemon::Source;
use snisplit::{daemon, doctor, explain};
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(level(&cli))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match act(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            match error.downcast_ref::<Problems>() {
                Some(problems) => eprintln!("{problems}"),
                None => eprintln!("snisplit: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Whoever asks for the kernel programs' log wants to see it.
fn level(cli: &Cli) -> LevelFilter {
    match cli.verb {
        Verb::Doctor { ebpf_log } => cli.log.max(ebpf_log),
        Verb::Run { .. } | Verb::Check { .. } | Verb::Explain(_) => cli.log,
    }
}

fn act(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Run { setup, watch } => {
            let Setup { config: path, overrides } = setup;
            daemon::run(&Source { path, overrides, watch })?;
        }
        Verb::Check { file } => {
            let config = Config::load(Some(&file), &Overrides::default())?;
            println!("{}: ok, {}", file.display(), explain::summary(&config));
        }
        Verb::Explain(asked) => {
            let setup = &asked.setup;
            let config = Config::load(setup.config.as_deref(), &setup.overrides)?;
            print!("{}", explain::explain(&config, &asked)?);
        }
        Verb::Doctor { ebpf_log } => return doctor::run(ebpf_log),
    }
    Ok(ExitCode::SUCCESS)
}
