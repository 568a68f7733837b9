//! Licences, bans and sources of the dependencies, by the rules of `deny.toml`.
//!
//! `cargo tree` and `Cargo.lock` have all that these checks need, so they run wherever the workspace
//! builds. Only the RustSec advisories need cargo-deny and a database from the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use toml::{Table, Value};

use crate::run::{capture_stdout, cargo, root, run_echoed};
use crate::setup;

/// Checks everything that can be checked here, and returns what could not be.
///
/// # Errors
/// Fails if a dependency breaks a rule.
pub(crate) fn check() -> Result<Option<String>> {
    let rules = Rules::parse(&fs::read_to_string(root().join("deny.toml"))?)?;
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--workspace", "--edges", "normal,build,dev"]);
    tree.args(["--prefix", "depth", "--format", "{p}\t{l}"]);
    for target in &rules.targets {
        tree.args(["--target", target]);
    }
    let packages = parse_tree(&capture_stdout(&mut tree)?);
    let mut faults: Vec<_> = packages.iter().flat_map(|package| rules.faults_of(package)).collect();
    let lock: Table = fs::read_to_string(root().join("Cargo.lock"))?.parse()?;
    faults.extend(rules.faults_of_sources(&lock));
    if !faults.is_empty() {
        bail!("deny.toml forbids {} dependencies:\n{}", faults.len(), faults.join("\n"));
    }
    let count = packages.len();
    eprintln!("dependencies: licences, bans and sources of {count} packages follow deny.toml");
    check_advisories()
}

/// Runs cargo-deny where it is installed. Returns why the advisories were not checked.
fn check_advisories() -> Result<Option<String>> {
    let Some(program) = setup::find_deny() else {
        let why = "cargo-deny is not installed (cargo xtask setup --with-deny)";
        return Ok(Some(format!("advisories: {why}")));
    };
    let deny = || {
        let mut command = Command::new(&program);
        command.current_dir(root());
        command
    };
    run_echoed(deny().args(["--log-level", "error", "check", "licenses", "bans", "sources"]))?;
    if let Err(error) = capture_stdout(deny().args(["fetch", "db"])) {
        let error = format!("{error:#}");
        let line = error.lines().last().unwrap_or_default();
        return Ok(Some(format!("advisories: the RustSec database cannot be fetched: {line}")));
    }
    run_echoed(deny().args(["--log-level", "error", "check", "--disable-fetch", "advisories"]))?;
    Ok(None)
}

/// A package that the workspace uses on one of its targets.
struct Package {
    /// Name and version, such as `nix v0.31.3`.
    id: String,
    license: String,
    /// Whether it is in the workspace.
    is_member: bool,
    /// Names of the packages that depend on it directly.
    dependents: BTreeSet<String>,
}

/// Parses lines such as `2nix v0.31.3<TAB>MIT (*)`: depth, package, licence, mark of a repeated line.
fn parse_tree(tree: &str) -> Vec<Package> {
    let mut packages: BTreeMap<String, Package> = BTreeMap::new();
    let mut path: Vec<String> = Vec::new();
    for line in tree.lines() {
        let Some((package, license)) = line.split_once('\t') else { continue };
        let digits = package.find(|letter: char| !letter.is_ascii_digit()).unwrap_or_default();
        let (depth, package) = package.split_at(digits);
        path.truncate(depth.parse().unwrap_or_default());
        let id = package.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let package = packages.entry(id.clone()).or_insert_with(|| Package {
            id: id.clone(),
            license: license.trim_end_matches(" (*)").to_owned(),
            is_member: package.contains(" (/"),
            dependents: BTreeSet::new(),
        });
        package.dependents.extend(path.last().cloned());
        path.push(name(&id).to_owned());
    }
    packages.into_values().collect()
}

/// `nix` of `nix v0.31.3`.
fn name(id: &str) -> &str {
    id.split(' ').next().unwrap_or(id)
}

/// The part of `deny.toml` that is checked here.
struct Rules {
    targets: Vec<String>,
    licenses: Vec<String>,
    registries: Vec<String>,
    bans: Vec<Ban>,
}

struct Ban {
    name: String,
    /// Packages that may depend on it.
    wrappers: Vec<String>,
}

impl Rules {
    fn parse(text: &str) -> Result<Self> {
        let file: Table = text.parse().context("deny.toml")?;
        let strings = |value: Option<&Value>| -> Vec<String> {
            let values = value.and_then(Value::as_array).into_iter().flatten();
            values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let key = |section: &str, key: &str| {
            let value = file.get(section).and_then(|section| section.get(key));
            value.with_context(|| format!("deny.toml has no [{section}] {key}"))
        };
        let ban = |entry: &Value| {
            let name = entry.get("name").and_then(Value::as_str);
            let name = name.context("deny.toml: an entry of bans.deny has no name")?;
            Ok(Ban { name: name.to_owned(), wrappers: strings(entry.get("wrappers")) })
        };
        let bans = key("bans", "deny")?.as_array().context("deny.toml: bans.deny is no array")?;
        Ok(Self {
            targets: strings(Some(key("graph", "targets")?)),
            licenses: strings(Some(key("licenses", "allow")?)),
            registries: strings(Some(key("sources", "allow-registry")?)),
            bans: bans.iter().map(ban).collect::<Result<_>>()?,
        })
    }

    fn faults_of(&self, package: &Package) -> Vec<String> {
        if package.is_member {
            return Vec::new();
        }
        let mut faults = Vec::new();
        let is_allowed = |name: &str| self.licenses.iter().any(|allowed| allowed == name);
        if !satisfies(&package.license, &is_allowed) {
            faults.push(format!("{}: its licence is {:?}", package.id, package.license));
        }
        for ban in self.bans.iter().filter(|ban| ban.name == name(&package.id)) {
            let users = package.dependents.iter().filter(|user| !ban.wrappers.contains(user));
            let fault = |user| format!("{}: it is banned, and {user} depends on it", package.id);
            faults.extend(users.map(fault));
        }
        faults
    }

    /// Packages of `Cargo.lock` from elsewhere than the allowed registries.
    fn faults_of_sources(&self, lock: &Table) -> Vec<String> {
        let packages = lock.get("package").and_then(Value::as_array).into_iter().flatten();
        let fault = |package: &Value| {
            let source = package.get("source")?.as_str()?;
            let registry = source.strip_prefix("registry+").unwrap_or_default();
            let is_allowed = self.registries.iter().any(|allowed| allowed == registry);
            let name = package.get("name")?.as_str()?;
            (!is_allowed).then(|| format!("{name}: its source is {source}"))
        };
        packages.filter_map(fault).collect()
    }
}

/// Whether allowed licences satisfy an SPDX expression. `/` is an old way to write `OR`.
fn satisfies(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens: Vec<_> = spaced.split_whitespace().rev().collect();
    any_of(&mut tokens, is_allowed) && tokens.is_empty()
}

/// `ALL [OR ALL]…`, from the end of the list on, which is in reverse.
fn any_of(tokens: &mut Vec<&str>, is_allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut holds = all_of(tokens, is_allowed);
    while tokens.pop_if(|token| *token == "OR").is_some() {
        holds |= all_of(tokens, is_allowed);
    }
    holds
}

/// `LICENCE [AND LICENCE]…`
fn all_of(tokens: &mut Vec<&str>, is_allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut holds = license(tokens, is_allowed);
    while tokens.pop_if(|token| *token == "AND").is_some() {
        holds &= license(tokens, is_allowed);
    }
    holds
}

/// `( ANY )`, `ID` or `ID WITH EXCEPTION`
fn license(tokens: &mut Vec<&str>, is_allowed: &dyn Fn(&str) -> bool) -> bool {
    let Some(first) = tokens.pop() else { return false };
    if first == "(" {
        let holds = any_of(tokens, is_allowed);
        return holds && tokens.pop() == Some(")");
    }
    if tokens.pop_if(|token| *token == "WITH").is_some() {
        let exception = tokens.pop().unwrap_or_default();
        return is_allowed(&format!("{first} WITH {exception}"));
    }
    is_allowed(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_evaluated() {
        let is_allowed =
            |name: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&name);
        let satisfied = |text: &str| satisfies(text, &is_allowed);
        for text in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "ISC AND (MIT OR GPL-3.0)"] {
            assert!(satisfied(text), "{text}");
        }
        assert!(satisfied("Apache-2.0 WITH LLVM-exception OR GPL-3.0"));
        assert!(satisfied("GPL-3.0 AND ISC OR MIT"), "AND binds tighter than OR");
        for text in
            ["", "GPL-3.0", "MIT AND GPL-3.0", "ISC AND (GPL-3.0 OR LGPL-3.0)", "MIT ISC", "(MIT"]
        {
            assert!(!satisfied(text), "{text}");
        }
        assert!(!satisfied("Apache-2.0"), "only with its exception");
    }

    fn rules() -> Rules {
        Rules::parse(
            "[graph]\ntargets = []\n[licenses]\nallow = ['MIT']\n[sources]\nallow-registry = ['r']\n\
             [bans]\ndeny = [{ name = 'nix', wrappers = ['tun'] }, { name = 'ring' }]\n",
        )
        .unwrap()
    }

    fn faults(id: &str, license: &str, dependents: &[&str]) -> usize {
        let dependents = dependents.iter().map(|&name| name.to_owned()).collect();
        let (id, license) = (id.to_owned(), license.to_owned());
        rules().faults_of(&Package { id, license, is_member: false, dependents }).len()
    }

    #[test]
    fn licences_and_bans_find_their_faults() {
        assert_eq!(faults("a v1", "MIT", &["b"]), 0);
        assert_eq!(faults("a v1", "GPL-3.0", &["b"]), 1);
        assert_eq!(faults("a v1", "", &["b"]), 1);
        assert_eq!(faults("ring v1", "MIT", &["b"]), 1);
        assert_eq!(faults("nix v1", "MIT", &["tun"]), 0);
        assert_eq!(faults("nix v1", "MIT", &["tun", "b"]), 1);
    }

    #[test]
    fn sources_find_their_faults() {
        let faults = |source: &str| {
            let lock = format!("[[package]]\nname = 'a'\n{source}\n");
            rules().faults_of_sources(&lock.parse().unwrap()).len()
        };
        assert_eq!(faults("source = 'registry+r'"), 0);
        assert_eq!(faults("source = 'registry+other'"), 1);
        assert_eq!(faults("source = 'git+r'"), 1);
        assert_eq!(faults(""), 0, "a member of the workspace");
    }

    #[test]
    fn a_tree_is_parsed() {
        let tree = "0agent v1.0.0 (/src/agent)\tMIT\n1tun v2.8.16\tMIT\n2nix v0.31.3\tMIT\n1log v0.4.1\tMIT OR \
             Apache-2.0\n\n0tests v1.0.0 (/src/tests)\tMIT\n1nix v0.31.3\tMIT (*)\n";
        let packages = parse_tree(tree);
        let ids: Vec<_> = packages.iter().map(|package| package.id.as_str()).collect();
        assert_eq!(
            ids,
            ["agent v1.0.0", "log v0.4.1", "nix v0.31.3", "tests v1.0.0", "tun v2.8.16"]
        );
        assert_eq!(packages[2].dependents, ["tests", "tun"].map(str::to_owned).into());
        assert_eq!(packages[1].license, "MIT OR Apache-2.0");
        assert!(packages[0].is_member && !packages[4].is_member);
    }
}
