//! Pages that are generated from the program: `docs/reference/configuration.md` and `cli.md`, the
//! JSON schema, the man pages. `tests/reference.rs` compares them with the files of the repository.

use std::collections::BTreeMap;
use std::io;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::config::keys;

mod cli_page;
mod configuration_page;

pub use cli_page::cli_page;
pub use configuration_page::configuration_page;

/// The JSON schema of a configuration file (draft 2020-12), as text.
pub fn json_schema() -> String {
    format!("{:#}\n", keys::json_schema())
}

/// The man pages in roff, by file name: `snisplit.1`, and one for each verb, such as
/// `snisplit-run.1`.
///
/// # Errors
///
/// None that depends on the environment: the pages are written to memory.
pub fn man_pages() -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut pages = BTreeMap::new();
    render_man_page(built_command(), "", &mut pages)?;
    Ok(pages)
}

fn render_man_page(
    command: Command,
    parent: &str,
    pages: &mut BTreeMap<String, Vec<u8>>,
) -> io::Result<()> {
    let name = if parent.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{parent}-{}", command.get_name())
    };
    for verb in command.get_subcommands().filter(|verb| !is_help(verb)) {
        render_man_page(verb.clone(), &name, pages)?;
    }
    // A page has a date of its own otherwise, and differs on every day.
    let man = Man::new(command.display_name(&name)).date("").title(name.to_uppercase());
    let mut page = Vec::new();
    man.render(&mut page)?;
    pages.insert(format!("{name}.1"), page);
    Ok(())
}

/// The command line with all that clap adds to it.
fn built_command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn is_help(verb: &Command) -> bool {
    verb.get_name() == "help"
}

/// Text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}
