//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use tracing::level_filters::LevelFilter;

use crate::config::{Overrides, defaults};

/// Split TLS connections by server name (SNI) without decrypting them
#[derive(Debug, Parser)]
#[command(name = "snisplit", version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// Log level on standard error: off, error, warn, info, debug or trace. Names and addresses
    /// of clients appear from debug on
    #[arg(
        long,
        global = true,
        default_value = "info",
        env = "SNISPLIT_LOG_LEVEL",
        value_name = "LEVEL"
    )]
    pub log_level: LevelFilter,

    /// Form of the result on standard output. `top` prints one line of JSON for each reading
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    pub output: OutputFormat,
}

/// Form of what a verb prints on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON document
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Accept and forward connections until SIGTERM; a second signal resets what still runs. SIGHUP
    /// reloads the file
    Run {
        /// Reload as soon as the file changes, within a second
        #[arg(long)]
        watch: bool,

        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        config_args: ConfigArgs,
    },
    /// Validate a configuration and list all that is wrong with it
    Check(ConfigArgs),
    /// Show how a connection would be routed, and why
    Explain(ExplainArgs),
    /// Show the certificates: issuer, end, next order, last error
    #[command(args_conflicts_with_subcommands = true)]
    Certs {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(subcommand)]
        command: Option<CertsCommand>,

        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        config_args: Box<ConfigArgs>,
    },
    /// Manage the policy routing that `source_address = "client"` needs
    Net {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(subcommand)]
        command: NetCommand,
    },
    /// Show whether an agent runs, its engine and what it has in the kernel. Works while the agent is
    /// stopped or hangs; exits with 1 if none runs
    Status(InstanceArgs),
    /// List the offloaded flows: addresses, route, bytes, age. Flows of splice and copy are in the
    /// metrics and, when they end, in the access log
    #[command(args_conflicts_with_subcommands = true)]
    Flows {
        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(subcommand)]
        command: Option<FlowsCommand>,

        #[allow(missing_docs, reason = "clap would take it for a help text")]
        #[command(flatten)]
        instance_args: InstanceArgs,
    },
    /// Watch the offloaded flows live, the busiest first, until Ctrl-C
    Top {
        /// Name of the agent (`instance` in its configuration)
        #[arg(long, default_value = defaults::INSTANCE, value_name = "NAME")]
        instance: String,

        /// Time between two readings
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration, value_name = "TIME")]
        interval: Duration,

        /// Number of readings [default: no end]
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Test what this host can do, and show the reason for each "no". Loads programs and attaches
    /// them to the loopback interface for a moment
    Doctor {
        /// Log level of the kernel programs while they are tried: off, error, warn, info, debug
        #[arg(long, default_value = "off", value_name = "LEVEL")]
        ebpf_log_level: LevelFilter,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages to a folder, such as /usr/local/share/man/man1
    Man {
        /// The folder; it is made if it is missing
        folder: PathBuf,
    },
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Renew the certificate of a name: a running agent orders within two seconds
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
    /// Show which rules are there and which are missing, each as the ip(8) command that adds it
    Check(ConfigArgs),
    /// Add the missing rules, and remove those that no back end needs
    Apply(ConfigArgs),
    /// Remove all rules
    Remove,
}

/// What to do with flows.
#[derive(Debug, Subcommand)]
pub enum FlowsCommand {
    /// Reset flows of the packet engine, both peers, by the client's address, within a second
    Reset {
        /// The client, as `flows` shows it: ADDRESS:PORT, or an ADDRESS for all of its flows
        client: String,

        /// Name of the agent (`instance` in its configuration)
        #[arg(long, default_value = defaults::INSTANCE, value_name = "NAME")]
        instance: String,
    },
    /// Convert the flows of the packet engine that an agent of an older version left: they run on, and
    /// the next agent adopts them. Fails while an agent of that name runs
    Migrate {
        /// Name of the agent (`instance` in its configuration)
        #[arg(long, default_value = defaults::INSTANCE, value_name = "NAME")]
        instance: String,
    },
    /// Reset the flows of the packet engine that an agent left, both peers, and remove all of it from
    /// the kernel. Fails while an agent of that name runs
    Purge {
        /// Name of the agent (`instance` in its configuration)
        #[arg(long, default_value = defaults::INSTANCE, value_name = "NAME")]
        instance: String,
    },
}

/// Which agent.
#[derive(clap::Args, Debug)]
pub struct InstanceArgs {
    /// Name of the agent (`instance` in its configuration)
    #[arg(long, default_value = defaults::INSTANCE, value_name = "NAME")]
    pub instance: String,
}

/// Where the configuration comes from.
#[derive(clap::Args, Debug)]
pub struct ConfigArgs {
    #[allow(missing_docs, reason = "`help` has the default")]
    #[arg(
        long,
        short,
        value_name = "FILE",
        help = format!("The TOML file [default: {}]", defaults::CONFIG_FILE)
    )]
    pub config: Option<PathBuf>,

    #[allow(missing_docs, reason = "clap would take it for a help text")]
    #[command(flatten)]
    pub overrides: Overrides,
}

/// Arguments of `explain`.
#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    #[allow(missing_docs, reason = "clap would take it for a help text")]
    #[command(flatten)]
    pub connection: ConnectionArgs,

    #[allow(missing_docs, reason = "clap would take it for a help text")]
    #[command(flatten)]
    pub config_args: ConfigArgs,
}

/// A connection to explain.
#[derive(clap::Args, Debug)]
pub struct ConnectionArgs {
    /// The server name that the client sends
    #[arg(long, value_name = "NAME", conflicts_with = "client_hello")]
    pub sni: Option<String>,

    /// A protocol that the client offers, such as h2 or acme-tls/1; may be repeated
    #[arg(long, value_name = "PROTOCOL", conflicts_with = "client_hello")]
    pub alpn: Vec<String>,

    /// A file with the bytes of a connection from its first one on, such as a capture has them
    #[arg(long, value_name = "FILE")]
    pub client_hello: Option<PathBuf>,
}
