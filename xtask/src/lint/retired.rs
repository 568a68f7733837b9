//! Words that the project does not use, and what it says instead.
//!
//! The list is `xtask/retired-words.txt`, whose head explains its format.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::str::FromStr as _;
use std::sync::LazyLock;

use anyhow::{Result, anyhow};
use proc_macro2::{TokenStream, TokenTree};

use super::finding::{Finding, Rule};

/// The list, by words in lower case.
static RETIRED: LazyLock<HashMap<String, Vec<RetiredWord>>> = LazyLock::new(|| {
    let mut by_word: HashMap<_, Vec<_>> = HashMap::new();
    for retired in parse(include_str!("../../retired-words.txt")) {
        by_word.entry(retired.word.to_lowercase()).or_default().push(retired);
    }
    by_word
});

/// Pages about earlier states of the project, which quote its earlier words.
const EXEMPT_PAGES: [&str; 2] = ["CHANGELOG.md", "docs/performance/notebook.md"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Identifiers, comments and pages.
    All,
    /// Identifiers.
    Code,
    /// Comments and pages.
    Pages,
    /// Names of defined functions.
    Functions,
}

struct RetiredWord {
    scope: Scope,
    /// With a capital letter: matches only words that have it. In lower case: matches any case.
    word: String,
    /// Matches an identifier as a whole, and not a word of it.
    is_whole: bool,
    instead: String,
}

impl RetiredWord {
    fn matches(&self, word: &str) -> bool {
        self.word == word || self.word == word.to_lowercase()
    }

    fn is_for_code(&self, identifier: &Identifier) -> bool {
        match self.scope {
            Scope::All | Scope::Code => true,
            Scope::Functions => identifier.is_function,
            Scope::Pages => false,
        }
    }

    fn is_for_prose(&self) -> bool {
        matches!(self.scope, Scope::All | Scope::Pages)
    }
}

fn parse(list: &str) -> Vec<RetiredWord> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.filter_map(parse_line).collect()
}

/// `SCOPE WORD -> INSTEAD`
fn parse_line(line: &str) -> Option<RetiredWord> {
    let (left, instead) = line.split_once(" -> ")?;
    let (scope, word) = left.split_once(' ')?;
    let scope = match scope {
        "all" => Scope::All,
        "code" => Scope::Code,
        "pages" => Scope::Pages,
        "fn" => Scope::Functions,
        _ => return None,
    };
    let (word, is_whole) = word.strip_prefix('=').map_or((word, false), |word| (word, true));
    Some(RetiredWord { scope, word: word.to_owned(), is_whole, instead: instead.to_owned() })
}

/// Looks for retired words in the identifiers, strings and comments of a Rust file.
///
/// # Errors
/// Fails if the text is not Rust.
pub(super) fn check_code(path: &Path, text: &str, findings: &mut Vec<Finding>) -> Result<()> {
    let tokens =
        TokenStream::from_str(text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let mut words = Words::default();
    words.collect(tokens);
    for identifier in words.identifiers {
        let name = &identifier.name;
        let whole = entries(name).filter(|retired| retired.is_whole);
        let words = words_of(name).flat_map(entries).filter(|retired| !retired.is_whole);
        for retired in whole.chain(words).filter(|retired| retired.is_for_code(&identifier)) {
            let message = format!("`{}` in `{name}`: say {}", retired.word, retired.instead);
            findings.push(Finding::at_line(Rule::RetiredWord, path, identifier.line, message));
        }
    }
    for (number, line) in text.lines().enumerate() {
        let comment = line.split_once("//").map_or("", |(_, comment)| comment);
        check_prose(path, number + 1, comment, findings);
    }
    let lines: Vec<_> = text.lines().collect();
    for string in words.strings {
        // The parser turns a documentation comment into a string.
        let is_comment =
            lines.get(string.line - 1).is_some_and(|line| line.trim_start().starts_with("//"));
        if !is_comment {
            check_prose(path, string.line, &string.text, findings);
        }
    }
    Ok(())
}

/// Looks for retired words in a page.
pub(super) fn check_page(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    if EXEMPT_PAGES.iter().any(|exempt| path == Path::new(exempt)) {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        check_prose(path, number + 1, line, findings);
    }
}

fn check_prose(path: &Path, line: usize, text: &str, findings: &mut Vec<Finding>) {
    for word in text.split(|letter: char| !letter.is_alphanumeric()) {
        for retired in entries(word).filter(|retired| retired.is_for_prose()) {
            let message = format!("`{word}`: say {}", retired.instead);
            findings.push(Finding::at_line(Rule::RetiredWord, path, line, message));
        }
    }
}

/// Entries that match a word.
fn entries(word: &str) -> impl Iterator<Item = &'static RetiredWord> {
    let entries = RETIRED.get(&word.to_lowercase()).into_iter().flatten();
    entries.filter(move |retired| retired.matches(word))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Identifier {
    line: usize,
    name: String,
    /// Stands behind `fn`.
    is_function: bool,
}

/// A literal, with its quotes.
struct StringLiteral {
    line: usize,
    text: String,
}

/// What stands in the tokens of a file.
#[derive(Default)]
struct Words {
    identifiers: BTreeSet<Identifier>,
    strings: Vec<StringLiteral>,
}

impl Words {
    /// Collects strings and identifiers. Leaves out identifiers behind a dot: a field or a method has
    /// its name where it is defined, which may be another crate.
    fn collect(&mut self, tokens: TokenStream) {
        let mut before = String::new();
        for token in tokens {
            let line = token.span().start().line;
            before = match token {
                TokenTree::Group(group) => {
                    self.collect(group.stream());
                    String::new()
                }
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    if before != "." {
                        let is_function = before == "fn";
                        self.identifiers.insert(Identifier {
                            line,
                            name: name.clone(),
                            is_function,
                        });
                    }
                    name
                }
                TokenTree::Literal(literal) => {
                    self.strings.push(StringLiteral { line, text: literal.to_string() });
                    String::new()
                }
                TokenTree::Punct(punct) => punct.to_string(),
            };
        }
    }
}

/// The words of an identifier: `Flow`, `Entry` of `FlowEntry`, `flow`, `entry` of `flow_entry`.
fn words_of(identifier: &str) -> impl Iterator<Item = &str> {
    identifier.split('_').flat_map(|part| {
        let letters: Vec<_> = part.char_indices().collect();
        let is_upper = |at: usize| letters.get(at).is_some_and(|(_, letter)| letter.is_uppercase());
        let is_lower = |at: usize| letters.get(at).is_some_and(|(_, letter)| letter.is_lowercase());
        // `IPv4Address` has `Address`, `TLSName` has `Name`.
        let starts_word = |at: usize| is_upper(at) && (!is_upper(at - 1) || is_lower(at + 1));
        let mut starts: Vec<usize> = vec![0];
        starts.extend((1..letters.len()).filter(|at| starts_word(*at)).map(|at| letters[at].0));
        let ends: Vec<usize> = starts.iter().skip(1).copied().chain([part.len()]).collect();
        starts.into_iter().zip(ends).map(|(start, end)| &part[start..end]).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_split_into_words() {
        let words = |identifier| words_of(identifier).collect::<Vec<_>>();
        assert_eq!(words("FlowEntry"), ["Flow", "Entry"]);
        assert_eq!(words("to_backend"), ["to", "backend"]);
        assert_eq!(words("MAX_LINES"), ["MAX", "LINES"]);
        assert_eq!(words("TLSName"), ["TLS", "Name"]);
        assert_eq!(words("x"), ["x"]);
    }

    #[test]
    fn every_line_of_the_list_is_an_entry() {
        let text = include_str!("../../retired-words.txt");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        let list = parse(text);
        assert_eq!(list.len(), lines);
        for entry in &list {
            let like_it = list.iter().filter(|other| {
                other.word.eq_ignore_ascii_case(&entry.word) && entry.scope == Scope::All
            });
            assert!(!entry.instead.is_empty() && like_it.count() <= 1, "{}", entry.word);
        }
    }

    #[test]
    fn a_word_in_lower_case_matches_in_any_case_and_a_capital_one_only_itself() {
        let list = parse("# head\n\nall wobble -> move\ncode Wag -> Tail\nfn =wag -> move\n");
        assert!(
            list[0].matches("wobble") && list[0].matches("Wobble") && list[0].matches("WOBBLE")
        );
        assert!(list[1].matches("Wag") && !list[1].matches("wag"));
        assert!(list[0].is_for_prose() && !list[1].is_for_prose());
        assert!(!list[0].is_whole && list[2].is_whole && list[2].word == "wag");
        let of = |is_function| Identifier { line: 1, name: "wag".into(), is_function };
        assert!(list[2].is_for_code(&of(true)) && !list[2].is_for_code(&of(false)));
    }

    #[test]
    fn definitions_of_functions_are_marked_and_names_behind_a_dot_left_out() {
        let mut words = Words::default();
        words.collect("impl A { fn b() { c().d(); } }".parse().unwrap());
        let names = |is_function| {
            let with =
                words.identifiers.iter().filter(|identifier| identifier.is_function == is_function);
            with.map(|identifier| identifier.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names(true), ["b"]);
        assert_eq!(names(false), ["A", "c", "fn", "impl"]);
    }

    /// The first word of the list that is looked for everywhere.
    fn example() -> &'static str {
        let mut entries = RETIRED.values().flatten();
        &entries.find(|retired| retired.scope == Scope::All && !retired.is_whole).unwrap().word
    }

    fn found(check: impl Fn(&mut Vec<Finding>)) -> Vec<String> {
        let mut findings = Vec::new();
        check(&mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_retired_word_in_code_is_found_with_its_line() {
        let word = example();
        let code = [
            "fn f() {".into(),
            format!("    g!({{ let is_{word} = 1; }});"),
            "}".into(),
            format!("// A {word}."),
            format!("/// A {word}."),
            format!("const A: &str = \"a {word}\";"),
        ]
        .join("\n");
        let found = found(|findings| check_code(Path::new("a.rs"), &code, findings).unwrap());
        let places: Vec<_> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(places, ["a.rs:2:", "a.rs:4:", "a.rs:5:", "a.rs:6:"]);
    }

    #[test]
    fn a_retired_word_in_a_page_is_found_but_not_in_the_notebook() {
        let page = format!("First.\nThe {} here.\n", example());
        let in_page = |path: &str| found(|findings| check_page(Path::new(path), &page, findings));
        assert!(in_page("docs/performance/notebook.md").is_empty());
        assert!(in_page("docs/guide/a.md")[0].starts_with("docs/guide/a.md:2: "));
    }
}
