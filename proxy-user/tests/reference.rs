//! The generated pages of the repository are those that the program generates.
//! `SNISPLIT_BLESS=1 cargo test -p snisplit --test reference` writes them.

use std::fs;
use std::path::{Path, PathBuf};

use snisplit::reference;

fn repository_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Compares a file with what it must hold; with `SNISPLIT_BLESS` set, writes it.
fn assert_current(path: &str, expected: &[u8]) {
    let file = repository_file(path);
    if std::env::var_os("SNISPLIT_BLESS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, expected).unwrap();
    }
    let found = fs::read(&file).unwrap_or_default();
    let remedy = "SNISPLIT_BLESS=1 cargo test -p snisplit --test reference";
    assert!(found == expected, "{path} is stale; run {remedy}");
}

#[test]
fn the_configuration_page_is_current() {
    let page = reference::configuration_page();
    assert_current("docs/reference/configuration.md", page.as_bytes());
}

#[test]
fn the_page_of_the_command_line_is_current() {
    assert_current("docs/reference/cli.md", reference::cli_page().as_bytes());
}

#[test]
fn the_json_schema_is_current() {
    let schema = reference::json_schema();
    assert_current("docs/reference/snisplit.schema.json", schema.as_bytes());
}

#[test]
fn the_man_pages_are_current() {
    let pages = reference::man_pages().unwrap();
    for (name, page) in &pages {
        assert_current(&format!("contrib/man/{name}"), page);
    }
    let folder = fs::read_dir(repository_file("contrib/man")).unwrap();
    for file in folder {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(pages.contains_key(&name), "contrib/man/{name} is of no verb; remove it");
    }
}
