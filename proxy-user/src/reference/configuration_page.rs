//! `docs/reference/configuration.md`

use std::fmt::Write as _;

use super::cell;
use crate::config::keys::{self, Key};
use crate::config::{defaults, flag_for_key};

const HEAD: &str = "\
# Configuration

<!-- Generated: SNISPLIT_BLESS=1 cargo test -p snisplit --test reference -->

The agent reads one TOML file. A flag sets the key that its row names, and wins over the file; a flag
for a list replaces the list of the file. `snisplit check` reports all problems of a file at once,
each with its file, line, key and remedy. SIGHUP reloads the file, and `run --watch` does so when it
changes: a file with a problem changes nothing.

";

const TYPES: &str = "
A *duration* is a string with units, such as `\"500ms\"`, `\"5s\"` or `\"2m 30s\"`. Where the type says
so, `\"off\"` is a duration too. An *integer* and a *boolean* stand without quotes. All other types
are strings. A *list* of them stands in brackets. *required* keys have no default. A default of *none*
means that the key is absent; the row says what follows from that.

A [JSON schema](snisplit.schema.json) of the file serves editors. Terms are in the
[glossary](../glossary.md).
";

/// The page, in Markdown.
pub fn configuration_page() -> String {
    let keys = keys::all();
    let mut page = HEAD.to_owned();
    let file = defaults::CONFIG_FILE;
    let _ = writeln!(
        page,
        "Without `-c FILE`, the verbs read `{file}`, and say so on standard error. Flags that give a \
         listener and a route make the file unnecessary: `{file}` is not read then."
    );
    page += TYPES;
    let top_level: Vec<&Key> = keys.iter().filter(|key| is_top_level(key)).collect();
    write_section(
        &mut page,
        "Top-level keys",
        "These keys stand before the first table.",
        &top_level,
    );
    for table in keys.iter().filter(|key| key.is_table()) {
        let prefix = format!("{}.", table.path);
        let is_own =
            |key: &&Key| key.path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.'));
        let own: Vec<&Key> = keys.iter().filter(is_own).collect();
        let title = heading(table, keys);
        write_table(&mut page, &title, table, &own, keys);
    }
    page
}

fn is_top_level(key: &Key) -> bool {
    !key.path.contains('.') && !key.is_table()
}

/// How the table is written: `[[route]]`, `[limits]`, or a key of another table.
fn heading(table: &Key, keys: &[Key]) -> String {
    match table.path.rsplit_once('.') {
        Some((parent, name)) if is_array_of_tables(parent, keys) || table.is_list => {
            format!("`{name}` of `[[{parent}]]`")
        }
        Some(_) => format!("`[{}]`", table.path),
        None if table.is_list => format!("`[[{}]]`", table.path),
        None => format!("`[{}]`", table.path),
    }
}

fn is_array_of_tables(path: &str, keys: &[Key]) -> bool {
    keys.iter().any(|key| key.path == path && key.is_list)
}

/// Writes a table. Keys that another table has with the same meaning are only named.
fn write_table(page: &mut String, title: &str, table: &Key, own: &[&Key], keys: &[Key]) {
    const MODEL: &str = "route";
    let twin = |key: &Key| {
        let (_, rest) = key.path.split_once('.')?;
        keys.iter().find(|other| other.path == format!("{MODEL}.{rest}"))
    };
    let is_shared = |key: &&&Key| {
        !key.path.starts_with(&format!("{MODEL}."))
            && twin(key).is_some_and(|other| other.description == key.description)
    };
    let (shared, distinct): (Vec<&Key>, Vec<&Key>) = own.iter().partition(|key| is_shared(key));
    if !own.is_empty() && distinct.is_empty() {
        return;
    }
    write_section(page, title, &table.description, &distinct);
    if !shared.is_empty() {
        let names: Vec<String> = shared.iter().map(|key| format!("`{}`", key.name())).collect();
        let _ = writeln!(page, "\nThe keys {} are those of `[[{MODEL}]]`.", names.join(", "));
    }
}

fn write_section(page: &mut String, title: &str, description: &str, keys: &[&Key]) {
    let _ = writeln!(page, "\n## {title}\n\n{description}\n");
    let _ = writeln!(page, "| Key | Type | Default | Meaning |\n|---|---|---|---|");
    for key in keys {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            key.name(),
            cell(&type_text(key)),
            default_text(key),
            cell(&meaning(key))
        );
    }
}

fn type_text(key: &Key) -> String {
    let mut text = match (key.is_table(), key.is_list) {
        (true, true) => "list of tables".to_owned(),
        (true, false) => "table".to_owned(),
        (false, true) => format!("list: {}", key.type_name),
        (false, false) => key.type_name.clone(),
    };
    match key.range {
        Some(range) => match range.max {
            Some(max) => write!(text, ", {} to {max}", range.min),
            None => write!(text, ", at least {}", range.min),
        },
        None => Ok(()),
    }
    .unwrap_or_default();
    if let Some(unit) = &key.unit {
        text += &format!(" ({unit})");
    }
    text
}

fn default_text(key: &Key) -> String {
    match (&key.default, key.is_required) {
        (_, true) => "required".into(),
        (Some(default), false) if default == "[]" => "empty".into(),
        (Some(default), false) => format!("`{default}`"),
        (None, false) => "none".into(),
    }
}

fn meaning(key: &Key) -> String {
    let mut text = key.description.clone();
    if !key.choices.is_empty() {
        let choices: Vec<String> = key
            .choices
            .iter()
            .map(|choice| format!("`{}`: {}", choice.label, choice.meaning))
            .collect();
        text += &format!(" Values: {}.", choices.join("; "));
    }
    if let Some(flag) = flag_for_key(&key.path) {
        text += &format!(" Flag: `--{flag}`.");
    }
    text
}
