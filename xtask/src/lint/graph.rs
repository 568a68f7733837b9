//! A graph of imports, its circles, and two ways to print it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

/// One module imports an item of another one.
#[derive(Clone, Debug)]
pub(super) struct Import {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) item: String,
    /// `file:line` of the first mention.
    pub(super) place: String,
}

/// The modules of a crate by their paths, and the imports between them.
pub(super) struct Graph {
    modules: BTreeSet<String>,
    /// The items of the second module that the first one imports, each with its place.
    imports: BTreeMap<(String, String), BTreeMap<String, String>>,
}

impl Graph {
    pub(super) fn new(modules: impl Iterator<Item = String>) -> Self {
        Self { modules: modules.collect(), imports: BTreeMap::new() }
    }

    /// Adds an import, unless a module imports from itself.
    pub(super) fn add(&mut self, import: Import) {
        if import.from != import.to {
            let items = self.imports.entry((import.from, import.to)).or_default();
            items.entry(import.item).or_insert(import.place);
        }
    }

    /// Every import.
    pub(super) fn imports(&self) -> impl Iterator<Item = Import> {
        self.imports.iter().flat_map(|((from, to), items)| {
            items.iter().map(move |(item, place)| Import {
                from: from.clone(),
                to: to.clone(),
                item: item.clone(),
                place: place.clone(),
            })
        })
    }

    /// Sets of modules in which each imports every other one, directly or over others.
    pub(super) fn circles(&self) -> Vec<Vec<&str>> {
        let edges = self.imports.keys().map(|(from, to)| (from.as_str(), to.as_str()));
        let mut circles = tarjan_scc(&DiGraphMap::<&str, ()>::from_edges(edges));
        circles.retain(|circle| circle.len() > 1);
        circles.iter_mut().for_each(|circle| circle.sort_unstable());
        circles.sort_unstable();
        circles
    }

    /// One line for each module, and below it one line for each module that it imports.
    pub(super) fn to_text(&self, title: &str) -> String {
        let mut text = format!("{title}: {} circles\n", self.circles().len());
        for module in &self.modules {
            let _infallible = writeln!(text, "  {module}");
            for ((from, to), items) in &self.imports {
                if from == module {
                    let items: Vec<_> = items.keys().map(String::as_str).collect();
                    let _infallible = writeln!(text, "    -> {to} ({})", items.join(", "));
                }
            }
        }
        text
    }

    /// The graph in Graphviz's language. Modules of a circle are red.
    pub(super) fn to_dot(&self, title: &str) -> String {
        let in_circles: BTreeSet<_> = self.circles().concat().into_iter().collect();
        let mut text = format!("digraph {title:?} {{\n  rankdir=LR; node [shape=box];\n");
        for module in &self.modules {
            let color = if in_circles.contains(module.as_str()) { " [color=red]" } else { "" };
            let _infallible = writeln!(text, "  {module:?}{color};");
        }
        for (from, to) in self.imports.keys() {
            let _infallible = writeln!(text, "  {from:?} -> {to:?};");
        }
        text + "}\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[&str]) -> Graph {
        let ends =
            |edge: &str| edge.split_once('>').map(|(from, to)| (from.to_owned(), to.to_owned()));
        let ends: Vec<_> = edges.iter().filter_map(|edge| ends(edge)).collect();
        let modules = ends.iter().flat_map(|(from, to)| [from.clone(), to.clone()]);
        let mut graph = Graph::new(modules);
        for (from, to) in ends {
            graph.add(Import { from, to, item: "Item".into(), place: "a.rs:1".into() });
        }
        graph
    }

    #[test]
    fn circles_are_found_whatever_their_length() {
        assert!(graph(&["a>b", "b>c", "a>c"]).circles().is_empty());
        assert_eq!(graph(&["a>b", "b>a", "c>a"]).circles(), [["a", "b"]]);
        assert_eq!(graph(&["a>b", "b>c", "c>a", "c>d"]).circles(), [["a", "b", "c"]]);
        assert!(graph(&["a>a"]).circles().is_empty());
    }

    #[test]
    fn a_graph_is_printed() {
        let graph = graph(&["a>b", "b>a", "b>c"]);
        let text =
            "demo: 1 circles\n  a\n    -> b (Item)\n  b\n    -> a (Item)\n    -> c (Item)\n  c\n";
        assert_eq!(graph.to_text("demo"), text);
        let dot = graph.to_dot("demo");
        assert!(dot.contains("  \"a\" [color=red];") && dot.contains("  \"c\";"), "{dot}");
        assert!(dot.contains("  \"b\" -> \"c\";"), "{dot}");
    }
}
