//! Paths and names in the syntax of one module.

#![expect(clippy::wildcard_enum_match_arm, reason = "the enums of syn are not exhaustive")]

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility};

/// A path that stands in a module's source.
pub(super) struct Reference {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

/// Gathers what a module's items refer to; inline modules within it are left to their own collector.
#[derive(Default)]
pub(super) struct Collector {
    pub(super) aliases: BTreeMap<String, Vec<String>>,
    pub(super) globs: Vec<Vec<String>>,
    pub(super) references: Vec<Reference>,
}

impl Collector {
    pub(super) fn read(items: &[Item]) -> Self {
        let mut collector = Self::default();
        items.iter().for_each(|item| collector.visit_item(item));
        collector
    }

    /// Records each name of a `use` declaration. A re-export is no reference: only its use is.
    fn add_use(&mut self, tree: &UseTree, before: &[String], is_reexport: bool) {
        let with = |name: String| before.iter().cloned().chain([name]).collect::<Vec<_>>();
        let (path, alias, line) = match tree {
            UseTree::Path(path) => {
                return self.add_use(&path.tree, &with(path.ident.to_string()), is_reexport);
            }
            UseTree::Group(group) => {
                let each = |tree| self.add_use(tree, before, is_reexport);
                return group.items.iter().for_each(each);
            }
            UseTree::Glob(glob) => {
                self.globs.push(before.to_vec());
                (with("*".into()), None, glob.star_token.span)
            }
            UseTree::Name(name) if name.ident == "self" => {
                (before.to_vec(), before.last().cloned(), name.ident.span())
            }
            UseTree::Name(name) => {
                let ident = name.ident.to_string();
                (with(ident.clone()), Some(ident), name.ident.span())
            }
            UseTree::Rename(rename) => {
                let alias = Some(rename.rename.to_string());
                (with(rename.ident.to_string()), alias, rename.ident.span())
            }
        };
        if !is_reexport {
            self.references.push(Reference { segments: path.clone(), line: line.start().line });
        }
        self.aliases.extend(alias.filter(|alias| alias != "_").map(|alias| (alias, path)));
    }

    /// Records the paths among the arguments of a macro, which the parser leaves as tokens.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut words = Vec::new();
        flatten(tokens, &mut words);
        let is_word = |at: usize| words.get(at).is_some_and(|word: &Word| word.is_name);
        let is = |at: usize, text: &str| words.get(at).is_some_and(|word| word.text == text);
        let mut at = 0;
        while at < words.len() {
            let start = at;
            at += 1;
            // A name behind a dot is a field or a method.
            if !is_word(start) || start > 0 && is(start - 1, ".") {
                continue;
            }
            let mut segments = vec![words[start].text.clone()];
            while is(at, ":") && is(at + 1, ":") && is_word(at + 2) {
                segments.push(words[at + 2].text.clone());
                at += 3;
            }
            self.references.push(Reference { segments, line: words[start].line });
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        if !attributes(item).is_some_and(is_test_only) {
            visit::visit_item(self, item);
        }
    }

    /// A module of its own.
    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if item.leading_colon.is_none() {
            self.add_use(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    /// `pub(in path)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.add_tokens(call.tokens.clone());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.references
                .push(Reference { segments, line: path.segments[0].ident.span().start().line });
        }
        visit::visit_path(self, path);
    }
}

/// A token of a macro call.
struct Word {
    text: String,
    line: usize,
    is_name: bool,
}

/// Lists the tokens in order, those within brackets included.
fn flatten(tokens: TokenStream, words: &mut Vec<Word>) {
    for token in tokens {
        let is_name = matches!(token, TokenTree::Ident(_));
        if let TokenTree::Group(group) = token {
            flatten(group.stream(), words);
        } else {
            words.push(Word { line: token.span().start().line, text: token.to_string(), is_name });
        }
    }
}

/// The name that an item defines in its module; `None` for modules, imports and implementations.
pub(super) fn defined_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn attributes(item: &Item) -> Option<&[Attribute]> {
    let attributes = match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => return None,
    };
    Some(attributes)
}

/// Whether an item is compiled for tests alone.
pub(super) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => {
            let condition = list.tokens.to_string();
            let is_test =
                condition.split(|c: char| !c.is_alphanumeric()).any(|word| word == "test");
            list.path.is_ident("cfg") && is_test && !condition.contains("not")
        }
        meta => meta.path().is_ident("test"),
    })
}
