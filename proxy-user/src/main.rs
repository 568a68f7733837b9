//! The `snisplit` binary: parses the command line, runs one subcommand and reports its result.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use mimalloc::MiMalloc;
use serde::Serialize;
use snisplit::cli::{
    CertsCommand, Cli, Command, ConfigArgs, FlowsCommand, InstanceArgs, NetCommand, OutputFormat,
};
use snisplit::commands::certs::CertificateList;
use snisplit::commands::check::CheckReport;
use snisplit::commands::doctor::HostReport;
use snisplit::commands::explain::Explanation;
use snisplit::commands::flows::{FlowList, FlowsChange};
use snisplit::commands::net::RoutingReport;
use snisplit::commands::status::Status;
use snisplit::commands::{certs, completions, flows, net, top};
use snisplit::config::{Config, ConfigErrors, defaults};
use snisplit::daemon;
use snisplit::daemon::ConfigSource;
use tracing::info;
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
        | Command::Top { .. }
        | Command::Completions { .. }
        | Command::Man { .. } => cli.log_level,
    }
}

fn run_command(command: Command, output: OutputFormat) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config_args: setup, watch } => {
            daemon::run(&ConfigSource { watch, ..config_source(setup) })?;
        }
        Command::Check(config_args) => {
            return run_check(&config_source(config_args), output);
        }
        Command::Explain(args) => {
            let config = load_config(args.config_args)?;
            print_output(&Explanation::new(&config, &args.connection)?, output)?;
        }
        Command::Certs {
            command: Some(CertsCommand::Renew { name, config_args: setup }), ..
        } => {
            print_output(&certs::request_renewal(&load_config(*setup)?, &name)?, output)?;
        }
        Command::Certs { command: None, config_args: setup } => {
            print_output(&CertificateList::read(&load_config(*setup)?)?, output)?;
        }
        Command::Net { command: NetCommand::Check(setup) } => {
            let report = RoutingReport::read(&load_config(setup)?)?;
            print_output(&report, output)?;
            return Ok(exit_code(report.is_complete()));
        }
        Command::Net { command: NetCommand::Apply(setup) } => {
            print_output(&net::apply(&load_config(setup)?)?, output)?;
        }
        Command::Net { command: NetCommand::Remove } => print_output(&net::remove()?, output)?,
        Command::Status(InstanceArgs { instance }) => {
            let status = Status::read(&instance)?;
            print_output(&status, output)?;
            return Ok(exit_code(status.is_running()));
        }
        Command::Flows { command: Some(verb), .. } => {
            print_output(&run_flows_command(verb)?, output)?;
        }
        Command::Flows { command: None, instance_args: InstanceArgs { instance } } => {
            print_output(&FlowList::read(&instance)?, output)?;
        }
        Command::Top { instance, interval, count } => {
            top::run(&instance, interval, count, output)?;
        }
        Command::Doctor { ebpf_log_level } => {
            let report = HostReport::run(ebpf_log_level);
            print_output(&report, output)?;
            return Ok(exit_code(report.has_passed()));
        }
        Command::Completions { shell } => completions::print_completions(shell)?,
        Command::Man { folder } => completions::write_man_pages(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// In JSON the problems are part of the report.
fn run_check(source: &ConfigSource, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let loaded = source.load();
    if output == OutputFormat::Text
        && let Err(problems) = loaded
    {
        return Err(problems.into());
    }
    print_output(&CheckReport::new(source.path.as_deref(), loaded.as_ref()), output)?;
    Ok(exit_code(loaded.is_ok()))
}

fn exit_code(is_success: bool) -> ExitCode {
    if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_flows_command(command: FlowsCommand) -> anyhow::Result<FlowsChange> {
    match command {
        FlowsCommand::Reset { client, instance } => flows::request_reset(&instance, &client),
        FlowsCommand::Migrate { instance } => flows::migrate(&instance),
        FlowsCommand::Purge { instance } => flows::purge(&instance),
    }
}

/// Prints a result. A reader that closed the pipe has read what it wanted.
fn print_output<T: Display + Serialize>(value: &T, output: OutputFormat) -> anyhow::Result<()> {
    let text = match output {
        OutputFormat::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        OutputFormat::Text => value.to_string(),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

fn load_config(args: ConfigArgs) -> Result<Config, ConfigErrors> {
    config_source(args).load()
}

/// Without `-c`, the file is the default one, unless the flags are a whole configuration.
fn config_source(args: ConfigArgs) -> ConfigSource {
    let ConfigArgs { config, overrides } = args;
    let default = Path::new(defaults::CONFIG_FILE);
    let uses_default = config.is_none() && !overrides.are_complete() && default.exists();
    if uses_default {
        info!(file = defaults::CONFIG_FILE, "reading the default configuration file");
    }
    let path = if uses_default { Some(default.into()) } else { config };
    ConfigSource { path, overrides, watch: false }
}
