//! The `snisplit` binary: parse the command line, do one verb, say how it went.

use std::fmt::Display;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use serde::Serialize;
use snisplit::cli::{Certs, Cli, FlowsVerb, Instance, Net, Setup, Verb};
use snisplit::config::{Config, Overrides, Problems};
use snisplit::daemon::Source;
use snisplit::status::{Flows, Status};
use snisplit::{daemon, doctor, explain, inspect, leftover, net, status};
use tracing::level_filters::LevelFilter;

/// A short connection makes some forty allocations, and glibc's took 3 to 4 % of its time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
        Verb::Run { .. }
        | Verb::Check { .. }
        | Verb::Explain(_)
        | Verb::Certs { .. }
        | Verb::Net { .. }
        | Verb::Status(_)
        | Verb::Flows { .. }
        | Verb::Top { .. } => cli.log,
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
            let config = load(&asked.setup)?;
            print!("{}", explain::explain(&config, &asked)?);
        }
        Verb::Certs { what: Some(Certs::Renew { name, setup }), .. } => {
            inspect::renew(&load(&setup)?, &name)?;
        }
        Verb::Certs { what: None, setup } => print!("{}", inspect::certificates(&load(&setup)?)?),
        Verb::Net { what: Net::Check(setup) } => return net::check(&load(&setup)?),
        Verb::Net { what: Net::Apply(setup) } => net::apply(&load(&setup)?)?,
        Verb::Net { what: Net::Remove } => net::remove()?,
        Verb::Status(Instance { instance, json }) => {
            let status = Status::of(&instance)?;
            tell(&status, json)?;
            return Ok(if status.is_running() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Flows { what: Some(verb), .. } => println!("{}", change_flows(verb)?),
        Verb::Flows { what: None, of: Instance { instance, json } } => {
            tell(&Flows::of(&instance)?, json)?;
        }
        Verb::Top { instance, interval, times } => status::top(&instance, interval, times)?,
        Verb::Doctor { ebpf_log } => return doctor::run(ebpf_log),
    }
    Ok(ExitCode::SUCCESS)
}

fn change_flows(verb: FlowsVerb) -> anyhow::Result<String> {
    match verb {
        FlowsVerb::Cut { client, instance } => leftover::cut(&instance, &client),
        FlowsVerb::Migrate { instance } => leftover::migrate(&instance),
        FlowsVerb::Drop { instance } => leftover::drop(&instance),
    }
}

fn tell<T: Display + Serialize>(what: &T, json: bool) -> anyhow::Result<()> {
    match json {
        true => println!("{}", serde_json::to_string_pretty(what)?),
        false => print!("{what}"),
    }
    Ok(())
}

fn load(setup: &Setup) -> Result<Config, Problems> {
    Config::load(setup.config.as_deref(), &setup.overrides)
}
