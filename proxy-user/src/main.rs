//! The `snisplit` binary: parses the command line, runs one subcommand and reports its result.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use serde::Serialize;
use snisplit::cli::{
    CertsCommand, Cli, Command, ConfigArgs, FlowsCommand, InstanceArgs, NetCommand, OutputFormat,
};
use snisplit::commands::certs::CertificateList;
use snisplit::commands::flows::FlowList;
use snisplit::commands::status::Status;
use snisplit::commands::{certs, check, doctor, explain, flows, net, top};
use snisplit::config::{Config, ConfigErrors};
use snisplit::daemon;
use snisplit::daemon::ConfigSource;
use tracing::level_filters::LevelFilter;

/// A short connection makes some 40 allocations. With glibc's allocator they take 3 to 4 % of its CPU time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(effective_log_level(&cli))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run_command(cli.command, cli.output) {
        Ok(code) => code,
        Err(error) => {
            match error.downcast_ref::<ConfigErrors>() {
                Some(problems) => eprintln!("{problems}"),
                None => eprintln!("snisplit: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Returns the level of the log. `doctor --ebpf-log-level` raises it, so that the log of the BPF programs
/// is shown.
fn effective_log_level(cli: &Cli) -> LevelFilter {
    match cli.command {
        Command::Doctor { ebpf_log_level: ebpf_log } => cli.log_level.max(ebpf_log),
        Command::Run { .. }
        | Command::Check(_)
        | Command::Explain(_)
        | Command::Certs { .. }
        | Command::Net { .. }
        | Command::Status(_)
        | Command::Flows { .. }
        | Command::Top { .. } => cli.log_level,
    }
}

fn run_command(command: Command, output: OutputFormat) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config_args: setup, watch } => {
            daemon::run(&ConfigSource { watch, ..config_source(setup) })?;
        }
        Command::Check(config_args) => {
            let source = config_source(config_args);
            let config = source.load()?;
            let path = source.path.as_deref().unwrap_or(Path::new("flags"));
            println!("{}: ok, {}", path.display(), check::summary(&config));
        }
        Command::Explain(args) => {
            let config = load_config(args.config_args)?;
            print!("{}", explain::explain(&config, &args.connection)?);
        }
        Command::Certs {
            command: Some(CertsCommand::Renew { name, config_args: setup }), ..
        } => {
            certs::request_renewal(&load_config(*setup)?, &name)?;
        }
        Command::Certs { command: None, config_args: setup } => {
            print_output(&CertificateList::read(&load_config(*setup)?)?, output)?;
        }
        Command::Net { command: NetCommand::Check(setup) } => {
            return net::check(&load_config(setup)?);
        }
        Command::Net { command: NetCommand::Apply(setup) } => net::apply(&load_config(setup)?)?,
        Command::Net { command: NetCommand::Remove } => net::remove()?,
        Command::Status(InstanceArgs { instance }) => {
            let status = Status::read(&instance)?;
            print_output(&status, output)?;
            return Ok(if status.is_running() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Flows { command: Some(verb), .. } => println!("{}", run_flows_command(verb)?),
        Command::Flows { command: None, instance_args: InstanceArgs { instance } } => {
            print_output(&FlowList::read(&instance)?, output)?;
        }
        Command::Top { instance, interval, count: times } => top::run(&instance, interval, times)?,
        Command::Doctor { ebpf_log_level } => return Ok(doctor::run(ebpf_log_level)),
    }
    Ok(ExitCode::SUCCESS)
}

fn run_flows_command(command: FlowsCommand) -> anyhow::Result<String> {
    match command {
        FlowsCommand::Reset { client, instance } => flows::request_reset(&instance, &client),
        FlowsCommand::Migrate { instance } => flows::migrate(&instance),
        FlowsCommand::Purge { instance } => flows::purge(&instance),
    }
}

fn print_output<T: Display + Serialize>(value: &T, output: OutputFormat) -> anyhow::Result<()> {
    match output {
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(value)?),
        OutputFormat::Text => print!("{value}"),
    }
    Ok(())
}

fn load_config(args: ConfigArgs) -> Result<Config, ConfigErrors> {
    config_source(args).load()
}

fn config_source(args: ConfigArgs) -> ConfigSource {
    ConfigSource { path: args.config, overrides: args.overrides, watch: false }
}
