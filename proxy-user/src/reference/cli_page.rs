//! `docs/reference/cli.md`

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

use super::{built_command, cell, is_help};
use crate::config::FLAGS_HEADING;

const HEAD: &str = "\
# Command line

<!-- Generated: SNISPLIT_BLESS=1 cargo test -p snisplit --test reference -->

`snisplit VERB [OPTIONS]`. Each verb prints its result on standard output, and errors and logs on
standard error. The exit code is 0 for success, 1 for a failure, and 2 for a wrong command line.
`snisplit VERB --help` prints the same texts as this page.

";

/// The page, in Markdown.
pub fn cli_page() -> String {
    let command = built_command();
    let mut page = HEAD.to_owned();
    let verbs: Vec<&Command> = command.get_subcommands().filter(|verb| !is_help(verb)).collect();
    page += "| Verb | Does |\n|---|---|\n";
    for verb in &verbs {
        let purpose = verb.get_about().map(ToString::to_string).unwrap_or_default();
        let name = verb.get_name();
        let _ = writeln!(page, "| [`{name}`](#snisplit-{name}) | {} |", cell(&purpose));
    }
    page += "\n## Options of every verb\n\n";
    write_args(
        &mut page,
        &options(&command).into_iter().filter(|arg| arg.is_global_set()).collect::<Vec<_>>(),
    );
    if let Some(run) = verbs.iter().find(|verb| has_configuration(verb)) {
        page += "\n## Configuration options\n\n\
                 Verbs that read the configuration take these options. Each sets the key of the same \
                 meaning in the [configuration](configuration.md), and wins over the file.\n\n";
        write_args(&mut page, &configuration_options(run));
    }
    verbs.iter().for_each(|verb| write_verb(&mut page, verb, "snisplit"));
    page
}

fn write_verb(page: &mut String, verb: &Command, parent: &str) {
    let name = format!("{parent} {}", verb.get_name());
    let purpose = verb.get_long_about().or(verb.get_about()).map(ToString::to_string);
    let _ = writeln!(page, "\n## {name}\n\n{}.", purpose.unwrap_or_default());
    let mut usage = verb.clone().render_usage().to_string();
    usage = usage.trim_start_matches("Usage: ").trim().to_owned();
    let _ = writeln!(page, "\n```text\n{usage}\n```");
    let positionals: Vec<&Arg> = verb.get_positionals().collect();
    let own = positionals.into_iter().chain(
        options(verb).into_iter().filter(|arg| !arg.is_global_set() && !is_configuration(arg)),
    );
    let own: Vec<&Arg> = own.collect();
    if !own.is_empty() {
        page.push('\n');
        write_args(page, &own);
    }
    if has_configuration(verb) {
        page.push_str("\nTakes the [configuration options](#configuration-options) too.\n");
    }
    for child in verb.get_subcommands().filter(|child| !is_help(child)) {
        write_verb(page, child, &name);
    }
}

/// The options of a command, without `--help` and `--version`.
fn options(command: &Command) -> Vec<&Arg> {
    let is_standard = |arg: &Arg| {
        matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        )
    };
    command.get_opts().chain(flags(command)).filter(|arg| !is_standard(arg)).collect()
}

/// Options without a value.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_positional() && !arg.get_action().takes_values())
}

fn is_configuration(arg: &Arg) -> bool {
    arg.get_help_heading() == Some(FLAGS_HEADING)
}

fn configuration_options(command: &Command) -> Vec<&Arg> {
    options(command).into_iter().filter(|arg| is_configuration(arg)).collect()
}

fn has_configuration(command: &Command) -> bool {
    !configuration_options(command).is_empty()
}

fn write_args(page: &mut String, args: &[&Arg]) {
    page.push_str("| Option | Meaning |\n|---|---|\n");
    for arg in args {
        let _ = writeln!(page, "| `{}` | {} |", option_text(arg), cell(&meaning(arg)));
    }
}

/// The option as it is typed: `-c, --config FILE`.
fn option_text(arg: &Arg) -> String {
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values());
    let value = value.map(|names| names.join(" "));
    match (arg.get_short(), arg.get_long(), value) {
        (Some(short), Some(long), Some(value)) => format!("-{short}, --{long} {value}"),
        (Some(short), Some(long), None) => format!("-{short}, --{long}"),
        (_, Some(long), Some(value)) => format!("--{long} {value}"),
        (_, Some(long), None) => format!("--{long}"),
        (_, None, value) => value.unwrap_or_default(),
    }
}

/// The help text, the values of a set, the default and the environment variable.
fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
    let mut text = help.unwrap_or_default();
    if !text.ends_with(['.', ']']) {
        text.push('.');
    }
    if arg.get_action().takes_values() {
        let value = |value: &clap::builder::PossibleValue| {
            let help = value.get_help().map(|help| format!(": {help}")).unwrap_or_default();
            format!("`{}`{help}", value.get_name())
        };
        let values: Vec<String> = arg.get_possible_values().iter().map(value).collect();
        if !values.is_empty() {
            text += &format!(" Values: {}.", values.join("; "));
        }
        let defaults: Vec<_> =
            arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        if !defaults.is_empty() {
            text += &format!(" Default: `{}`.", defaults.join(" "));
        }
    }
    if let Some(variable) = arg.get_env() {
        text += &format!(" Environment variable: `{}`.", variable.to_string_lossy());
    }
    text
}
