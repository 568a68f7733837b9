//! Licences, bans and sources of the dependencies, by the rules of `deny.toml`.
//!
//! `cargo metadata` has all that these checks need, so they run wherever the workspace builds. Only the
//! RustSec advisories need cargo-deny and a database from the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use toml::Table;

use crate::run::{cargo, loud, quiet, root};
use crate::setup;

/// Checks everything that can be checked here, and returns what could not be.
///
/// # Errors
/// Fails if a dependency breaks a rule.
pub(crate) fn check() -> Result<Option<String>> {
    let rules = Rules::parse(&fs::read_to_string(root().join("deny.toml"))?)?;
    let mut metadata = cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    for target in &rules.targets {
        metadata.args(["--filter-platform", target]);
    }
    let packages = used_packages(&serde_json::from_str(&quiet(&mut metadata)?)?);
    let faults: Vec<_> = packages.iter().flat_map(|package| rules.faults_of(package)).collect();
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
    loud(deny().args(["--log-level", "error", "check", "licenses", "bans", "sources"]))?;
    if let Err(error) = quiet(deny().args(["fetch", "db"])) {
        let error = format!("{error:#}");
        let line = error.lines().last().unwrap_or_default();
        return Ok(Some(format!("advisories: the RustSec database cannot be fetched: {line}")));
    }
    loud(deny().args(["--log-level", "error", "check", "--disable-fetch", "advisories"]))?;
    Ok(None)
}

/// A package that the workspace uses on one of its targets.
struct Package {
    name: String,
    version: String,
    /// `None` for a package of the workspace.
    source: Option<String>,
    license: Option<String>,
    /// Names of the packages that depend on it directly.
    dependents: BTreeSet<String>,
}

/// Packages that a member of the workspace reaches. cargo also lists some that nobody uses.
fn used_packages(metadata: &Value) -> Vec<Package> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let nodes = list(&metadata["resolve"]["nodes"]);
    let dependencies: BTreeMap<_, Vec<_>> = nodes
        .iter()
        .map(|node| {
            (text(&node["id"]), list(&node["deps"]).iter().map(|d| text(&d["pkg"])).collect())
        })
        .collect();
    let listed = list(&metadata["packages"]);
    let names: BTreeMap<_, _> =
        listed.iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let mut dependents: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut open: Vec<_> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let mut reached: BTreeSet<_> = open.iter().cloned().collect();
    while let Some(package) = open.pop() {
        for dependency in dependencies.get(&package).into_iter().flatten() {
            let name = names.get(&package).cloned().unwrap_or_default();
            dependents.entry(dependency.clone()).or_default().insert(name);
            if reached.insert(dependency.clone()) {
                open.push(dependency.clone());
            }
        }
    }
    let used = listed.iter().filter(|package| reached.contains(&text(&package["id"])));
    used.map(|package| Package {
        name: text(&package["name"]),
        version: text(&package["version"]),
        source: package["source"].as_str().map(str::to_owned),
        license: package["license"].as_str().map(str::to_owned),
        dependents: dependents.remove(&text(&package["id"])).unwrap_or_default(),
    })
    .collect()
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
        let strings = |value: Option<&toml::Value>| -> Vec<String> {
            let values = value.and_then(toml::Value::as_array).into_iter().flatten();
            values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let key = |section: &str, key: &str| {
            let value = file.get(section).and_then(|section| section.get(key));
            value.with_context(|| format!("deny.toml has no [{section}] {key}"))
        };
        let ban = |entry: &toml::Value| {
            let name = entry.get("name").and_then(toml::Value::as_str);
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
        let Some(source) = &package.source else { return Vec::new() };
        let mut faults = Vec::new();
        let registry = source.strip_prefix("registry+").unwrap_or_default();
        if !self.registries.iter().any(|allowed| allowed == registry) {
            faults.push(format!("its source is {source}"));
        }
        let license = package.license.as_deref().unwrap_or("unknown");
        let is_allowed = |name: &str| self.licenses.iter().any(|allowed| allowed == name);
        if !satisfies(license, &is_allowed) {
            faults.push(format!("its licence is {license}"));
        }
        for ban in self.bans.iter().filter(|ban| ban.name == package.name) {
            let users = package.dependents.iter().filter(|user| !ban.wrappers.contains(user));
            faults.extend(users.map(|user| format!("it is banned, and {user} depends on it")));
        }
        let with_name = |fault| format!("{} {}: {fault}", package.name, package.version);
        faults.into_iter().map(with_name).collect()
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

    fn faults(name: &str, source: &str, license: &str, dependents: &[&str]) -> usize {
        let dependents = dependents.iter().map(|&name| name.to_owned()).collect();
        let (source, license) = (Some(source.into()), Some(license.into()));
        let package =
            Package { name: name.into(), version: "1".into(), source, license, dependents };
        rules().faults_of(&package).len()
    }

    #[test]
    fn each_rule_finds_its_fault() {
        assert_eq!(faults("a", "registry+r", "MIT", &["b"]), 0);
        assert_eq!(faults("a", "registry+other", "MIT", &["b"]), 1);
        assert_eq!(faults("a", "git+r", "MIT", &["b"]), 1);
        assert_eq!(faults("a", "registry+r", "GPL-3.0", &["b"]), 1);
        assert_eq!(faults("ring", "registry+r", "MIT", &["b"]), 1);
        assert_eq!(faults("nix", "registry+r", "MIT", &["tun"]), 0);
        assert_eq!(faults("nix", "registry+r", "MIT", &["tun", "b"]), 1);
    }

    #[test]
    fn packages_that_nobody_uses_do_not_count() {
        let metadata = serde_json::json!({
            "packages": [
                { "id": "1", "name": "member", "version": "1" },
                { "id": "2", "name": "used", "version": "1" },
                { "id": "3", "name": "unused", "version": "1" },
            ],
            "workspace_members": ["1"],
            "resolve": { "nodes": [
                { "id": "1", "deps": [{ "pkg": "2" }] },
                { "id": "2", "deps": [] },
                { "id": "3", "deps": [{ "pkg": "2" }] },
            ] },
        });
        let packages = used_packages(&metadata);
        let names: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["member", "used"]);
        assert_eq!(packages[1].dependents, BTreeSet::from(["member".to_owned()]));
    }
}
