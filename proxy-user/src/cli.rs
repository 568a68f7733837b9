//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::config::Overrides;

/// Splits TLS connections by server name (SNI) without decrypting them.
#[derive(Debug, Parser)]
#[command(name = "snisplit", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// Log level on standard error: off, error, warn, info, debug or trace. Names and addresses
    /// of clients appear from debug on
    #[arg(long, global = true, default_value = "info", env = "SNISPLIT_LOG", value_name = "LEVEL")]
    pub log_level: LevelFilter,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Accept and forward connections until SIGTERM; a second one cuts what still runs. SIGHUP
    /// reloads the file
    Run {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        config_args: ConfigArgs,

        /// Reload as soon as the file changes, within a second
        #[arg(long)]
        watch: bool,
    },
    /// Say whether a config file is right, and if not, all that is wrong with it
    Check {
        /// The TOML file
        file: PathBuf,
    },
    /// Say what would happen to a connection, and why
    Explain(ExplainArgs),
    /// Say which certificates there are, until when, and what went wrong with them
    #[command(args_conflicts_with_subcommands = true)]
    Certs {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(subcommand)]
        command: Option<CertsCommand>,

        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        config_args: Box<ConfigArgs>,
    },
    /// Look after the routing rules that back ends with `source = "client"` need
    Net {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(subcommand)]
        command: NetCommand,
    },
    /// Say whether an agent runs, with which engine, and what it has in the kernel. Works while the
    /// agent is stopped or hangs, and fails if none runs
    Status(InstanceArgs),
    /// List the flows that the kernel carries: addresses, route, bytes, age. Those that splice or
    /// copy carries are in the metrics and, when they end, in the access log
    #[command(args_conflicts_with_subcommands = true)]
    Flows {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(subcommand)]
        command: Option<FlowsCommand>,

        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        instance_args: InstanceArgs,
    },
    /// Show the flows that the kernel carries and what they move now, again and again, those first that
    /// move most; ended by Ctrl-C
    Top {
        /// Its name (`instance` in its configuration)
        #[arg(long, default_value = crate::config::DEFAULT_INSTANCE, value_name = "NAME")]
        instance: String,

        /// Time between looks
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "TIME")]
        interval: Duration,

        /// How many looks; without end unless it is given
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Say what this host can do, and for each "no", the reason
    Doctor {
        /// Log level of the kernel programs while they are tried: off, error, warn, info, debug
        #[arg(long, default_value = "off", value_name = "LEVEL")]
        ebpf_log_level: LevelFilter,
    },
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Ask the agent to renew the certificate of a name now
    Renew {
        /// One of its names
        name: String,

        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        config_args: Box<ConfigArgs>,
    },
}

/// What to do with the routing rules.
#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// Say which are there and which are missing, each as the ip(8) command that adds it
    Check(ConfigArgs),
    /// Add the missing ones, and remove those that are no longer needed
    Apply(ConfigArgs),
    /// Remove all of them
    Remove,
}

/// What to do with flows.
#[derive(Debug, Subcommand)]
pub enum FlowsCommand {
    /// Reset flows of the packet engine, both peers, by the client's address. The agent does it within
    /// a second
    Reset {
        /// The client, as `flows` shows it: ADDRESS:PORT, or an ADDRESS for all of its flows
        client: String,

        /// Its name (`instance` in its configuration)
        #[arg(long, default_value = crate::config::DEFAULT_INSTANCE, value_name = "NAME")]
        instance: String,
    },
    /// Take over the flows of the packet engine that an agent of an older version has left behind: they run
    /// on, and the next agent adopts them. Not while an agent of that name runs
    Migrate {
        /// Its name (`instance` in its configuration)
        #[arg(long, default_value = crate::config::DEFAULT_INSTANCE, value_name = "NAME")]
        instance: String,
    },
    /// End the flows of the packet engine that an agent has left behind: with a reset for both peers,
    /// and nothing of it stays in the kernel. Not while an agent of that name runs
    Purge {
        /// Its name (`instance` in its configuration)
        #[arg(long, default_value = crate::config::DEFAULT_INSTANCE, value_name = "NAME")]
        instance: String,
    },
}

/// Which agent.
#[derive(clap::Args, Debug)]
pub struct InstanceArgs {
    /// Its name (`instance` in its configuration)
    #[arg(long, default_value = crate::config::DEFAULT_INSTANCE, value_name = "NAME")]
    pub instance: String,

    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Where the configuration comes from.
#[derive(clap::Args, Debug)]
pub struct ConfigArgs {
    /// The TOML file
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[allow(missing_docs, reason = "clap would take it for a help text")]
    #[command(flatten)]
    pub overrides: Overrides,
}

/// A connection to explain.
#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    /// The server name that the client sends
    #[arg(long, value_name = "NAME", conflicts_with = "hello")]
    pub sni: Option<String>,

    /// A protocol that the client offers, such as h2 or acme-tls/1; may be repeated
    #[arg(long, value_name = "PROTOCOL", conflicts_with = "hello")]
    pub alpn: Vec<String>,

    /// A file with the bytes of a connection from its first one on, such as a capture has them
    #[arg(long, value_name = "FILE")]
    pub client_hello: Option<PathBuf>,

    #[allow(missing_docs, reason = "clap would take it for a help text")]
    #[command(flatten)]
    pub config_args: ConfigArgs,
}
