//! What a check found.

use std::fmt;
use std::path::Path;

/// A house rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    ForbiddenText,
    FunctionLength,
    ImportCircle,
    ImportLayer,
    RetiredWord,
    TupleParameter,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::ForbiddenText => "forbidden text",
            Self::FunctionLength => "function length",
            Self::ImportCircle => "import circle",
            Self::ImportLayer => "import layer",
            Self::RetiredWord => "retired word",
            Self::TupleParameter => "tuple parameter",
        })
    }
}

/// One break of a rule.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) rule: Rule,
    /// `file:line`.
    place: String,
    message: String,
}

impl Finding {
    /// A finding in a line of a file; lines count from 1.
    pub(super) fn at_line(rule: Rule, path: &Path, line: usize, message: String) -> Self {
        Self::at_place(rule, format!("{}:{line}", path.display()), message)
    }

    /// A finding at a `file:line` that is already written out.
    pub(super) fn at_place(rule: Rule, place: String, message: String) -> Self {
        Self { rule, place, message }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.place, self.rule, self.message)
    }
}
