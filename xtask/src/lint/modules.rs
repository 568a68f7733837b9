//! Modules of one crate, and what each of them imports.
//!
//! The parser reads `use` declarations and inline paths, macro arguments included. It leaves out
//! everything under `#[cfg(test)]`. A name that a module re-exports counts as an import of the module
//! that defines it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use syn::{Item, ItemMod};

use super::graph::{Graph, Import};
use super::paths::{Collector, Reference, defined_name, is_test_only};

/// Reads a source file; `None` where there is no such file.
pub(super) type ReadFile<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// Longest chain of re-exports that is followed.
const MAX_REEXPORTS: usize = 16;

/// Parses a crate from its root file on and returns the imports between its files.
pub(super) fn import_graph(crate_root: &Path, read: ReadFile) -> Result<Graph> {
    let mut parsed = CrateModules { modules: Vec::new(), files: Vec::new(), read };
    let folder = crate_root.parent().unwrap_or(Path::new("")).to_owned();
    parsed.load_file(
        SourceFile { path: crate_root.to_owned(), name: "crate".into() },
        None,
        folder,
    )?;
    Ok(parsed.graph())
}

/// A module: a file, or an inline `mod` within one.
struct Module {
    parent: Option<usize>,
    /// Index of the file in [`CrateModules::files`].
    file: usize,
    children: BTreeMap<String, usize>,
    /// Names of items that this module defines itself.
    defined: BTreeSet<String>,
    /// Names that `use` declarations bring in, and the path that each stands for.
    aliases: BTreeMap<String, Vec<String>>,
    /// Modules whose names `use …::*` brings in.
    globs: Vec<Vec<String>>,
    references: Vec<Reference>,
}

/// A file of the crate.
struct SourceFile {
    path: PathBuf,
    /// Module path as the source writes it, such as `crate::config::file`.
    name: String,
}

struct CrateModules<'a> {
    modules: Vec<Module>,
    files: Vec<SourceFile>,
    read: ReadFile<'a>,
}

/// Where a path leads.
enum Target {
    /// Out of the crate.
    External,
    /// A module as such: a namespace and no import by itself.
    Module(usize),
    /// An item of this name in this module.
    Item(usize, String),
}

impl CrateModules<'_> {
    /// Parses a file and its children, which `folder` holds.
    fn load_file(
        &mut self,
        file: SourceFile,
        parent: Option<usize>,
        folder: PathBuf,
    ) -> Result<usize> {
        let text =
            (self.read)(&file.path).with_context(|| format!("read {}", file.path.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| file.path.display().to_string())?;
        self.files.push(file);
        self.load_items(&syntax.items, parent, self.files.len() - 1, &folder)
    }

    fn load_items(
        &mut self,
        items: &[Item],
        parent: Option<usize>,
        file: usize,
        folder: &Path,
    ) -> Result<usize> {
        let index = self.modules.len();
        let Collector { aliases, globs, references } = Collector::read(items);
        let defined = items.iter().filter_map(defined_name).collect();
        let children = BTreeMap::new();
        self.modules.push(Module { parent, file, children, defined, aliases, globs, references });
        for item in items {
            let Item::Mod(declaration) = item else { continue };
            if !is_test_only(&declaration.attrs) {
                let child = self.load_child(declaration, index, folder)?;
                self.modules[index].children.insert(declaration.ident.to_string(), child);
            }
        }
        Ok(index)
    }

    fn load_child(&mut self, child: &ItemMod, parent: usize, folder: &Path) -> Result<usize> {
        let name = child.ident.to_string();
        let below = folder.join(&name);
        let file = self.modules[parent].file;
        if let Some((_, items)) = &child.content {
            return self.load_items(items, Some(parent), file, &below);
        }
        let flat = folder.join(format!("{name}.rs"));
        let path = if (self.read)(&flat).is_some() { flat } else { below.join("mod.rs") };
        let name = format!("{}::{name}", self.files[file].name);
        self.load_file(SourceFile { path, name }, Some(parent), below)
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new(self.files.iter().map(|file| file.name.clone()));
        for (index, module) in self.modules.iter().enumerate() {
            let from = &self.files[module.file];
            for reference in &module.references {
                let Target::Item(target, item) = self.resolve(index, &reference.segments, 0) else {
                    continue;
                };
                let to = self.files[self.modules[target].file].name.clone();
                let place = format!("{}:{}", from.path.display(), reference.line);
                graph.add(Import { from: from.name.clone(), to, item, place });
            }
        }
        graph
    }

    /// Follows a path that stands in the module `from`.
    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Target {
        let Some((first, rest)) = path.split_first().filter(|_| depth < MAX_REEXPORTS) else {
            return Target::External;
        };
        match first.as_str() {
            "crate" => self.descend(0, rest, depth),
            "self" => self.descend(from, rest, depth),
            "super" => match self.modules[from].parent {
                Some(parent) if rest.first().is_some_and(|next| next == "super") => {
                    self.resolve(parent, rest, depth)
                }
                Some(parent) => self.descend(parent, rest, depth),
                None => Target::External,
            },
            _ => self.lookup(from, path, depth).unwrap_or(Target::External),
        }
    }

    /// Follows the rest of a path from a module on.
    fn descend(&self, module: usize, path: &[String], depth: usize) -> Target {
        match path.first().map(String::as_str) {
            None | Some("self") => Target::Module(module),
            // What nobody declares, a macro may have made.
            Some(name) => self
                .lookup(module, path, depth)
                .unwrap_or_else(|| Target::Item(module, name.to_owned())),
        }
    }

    /// Finds the first name of a path among the children, items and imports of a module.
    fn lookup(&self, module: usize, path: &[String], depth: usize) -> Option<Target> {
        let (name, rest) = path.split_first()?;
        let scope = &self.modules[module];
        if let Some(&child) = scope.children.get(name) {
            return Some(self.descend(child, rest, depth));
        }
        if scope.defined.contains(name) {
            return Some(Target::Item(module, name.clone()));
        }
        if let Some(meaning) = scope.aliases.get(name) {
            let path: Vec<String> = meaning.iter().chain(rest).cloned().collect();
            return Some(self.resolve(module, &path, depth + 1));
        }
        scope.globs.iter().find_map(|glob| match self.resolve(module, glob, depth + 1) {
            Target::Module(source) if source != module => self.lookup(source, path, depth + 1),
            Target::Module(_) | Target::Item(..) | Target::External => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::import_graph;

    /// A file of a crate, and its text.
    type File = (&'static str, &'static str);

    fn edges(files: &[File]) -> Vec<String> {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        let graph = import_graph(Path::new("lib.rs"), &read).unwrap();
        let line =
            |import: super::Import| format!("{} -> {}::{}", import.from, import.to, import.item);
        graph.imports().map(line).collect()
    }

    #[test]
    fn a_parent_that_declares_and_reexports_does_not_import() {
        let files = [("lib.rs", "mod a; pub(crate) use a::A;"), ("a.rs", "pub(crate) struct A;")];
        assert!(edges(&files).is_empty());
    }

    #[test]
    fn a_name_leads_to_the_file_that_defines_it() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "mod deep; pub(crate) use self::deep::Deep as Renamed;"),
            ("a/deep.rs", "pub(crate) struct Deep;"),
            ("b.rs", "use crate::a::Renamed; fn b(_: Renamed) {}"),
            ("c/mod.rs", "fn c() { super::b::b(); println!(\"{}\", crate::a::Renamed::X); }"),
        ];
        let expected = [
            "crate::b -> crate::a::deep::Deep",
            "crate::c -> crate::a::deep::Deep",
            "crate::c -> crate::b::b",
        ];
        assert_eq!(edges(&files), expected);
    }

    #[test]
    fn globs_and_inline_modules_are_followed() {
        let files = [
            ("lib.rs", "mod a; mod b; mod inner { use super::b::f; }"),
            ("a.rs", "use crate::b::*; fn a() { f(); }"),
            ("b.rs", "pub(crate) fn f() {}"),
        ];
        assert!(edges(&files).contains(&"crate::a -> crate::b::f".to_owned()));
        assert!(edges(&files).contains(&"crate -> crate::b::f".to_owned()));
    }

    #[test]
    fn tests_do_not_count() {
        let files = [
            ("lib.rs", "mod a; #[cfg(test)] mod tests { use super::a::A; }"),
            ("a.rs", "struct A; #[cfg(test)] use crate::b; #[test] fn t() { crate::c(); }"),
        ];
        assert!(edges(&files).is_empty());
    }
}
