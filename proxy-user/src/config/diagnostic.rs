//! Problems of a configuration: where, which key, what is wrong, and the remedy.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::located::{Located, Origin, Position, Setting, SourceFile};

/// All problems of a configuration; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    pub(super) source: Option<SourceFile>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// One problem, with its place as a person reads it.
#[derive(Debug, Serialize)]
struct Problem<'e> {
    file: Option<PathBuf>,
    /// Counted from 1.
    line: Option<usize>,
    /// The flag, as it was typed.
    flag: Option<String>,
    /// The key as it is written in the file, such as `route.sni`.
    key: Option<&'e str>,
    /// What is wrong, then the remedy.
    message: &'e str,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnostic {
    /// `None` for a problem of the configuration as a whole.
    pub(super) position: Option<Position>,
    /// The key as it is written in the file, such as `route.sni`; empty for a syntax error.
    pub(super) key: String,
    /// What is wrong, then the remedy.
    pub(super) message: String,
}

/// Collects problems while a configuration is validated.
pub(super) struct Diagnostics {
    source: Option<SourceFile>,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// No problems yet. `source` is the file that positions in a file refer to.
    pub(super) const fn new(source: Option<SourceFile>) -> Self {
        Self { source, list: Vec::new() }
    }

    /// Adds a problem. The same problem at the same position is reported once: a flag may set a key
    /// of several listeners.
    pub(super) fn report(&mut self, position: &Position, key: &str, message: impl Into<String>) {
        self.push(Some(position.clone()), key, message.into());
    }

    /// Adds a problem of the configuration as a whole.
    pub(super) fn report_whole(&mut self, key: &str, message: impl Into<String>) {
        self.push(None, key, message.into());
    }

    fn push(&mut self, position: Option<Position>, key: &str, message: String) {
        let diagnostic = Diagnostic { position, key: key.into(), message };
        if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    /// The value of a key; `None` if it is absent, or wrong and therefore reported.
    pub(super) fn value<T>(&mut self, key: &str, setting: Option<Setting<T>>) -> Option<T> {
        let Located { position, value } = setting?;
        value.0.map_err(|message| self.report(&position, key, message)).ok()
    }

    /// The values of a list; `None` if one of them is wrong.
    pub(super) fn values<T>(&mut self, key: &str, settings: Vec<Setting<T>>) -> Option<Vec<T>> {
        let values: Vec<Option<T>> =
            settings.into_iter().map(|setting| self.value(key, Some(setting))).collect();
        values.into_iter().collect()
    }

    /// Where something was written, with the line.
    pub(super) fn origin(&self, position: &Position) -> Origin {
        resolve(position, self.source.as_ref())
    }

    /// `value`, if there is no problem.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        match value {
            Some(value) if self.list.is_empty() => Ok(value),
            _ => Err(ConfigErrors { source: self.source, diagnostics: self.list }),
        }
    }
}

fn resolve(position: &Position, source: Option<&SourceFile>) -> Origin {
    match (position, source) {
        (Position::Flag(flag), _) => Origin::Flag(flag.clone()),
        (Position::File(offset), Some(source)) => source.origin(*offset),
        (Position::File(_), None) => Origin::File { path: "file".into(), line: 0 },
    }
}

impl ConfigErrors {
    fn problems(&self) -> impl Iterator<Item = Problem<'_>> {
        self.diagnostics.iter().map(|Diagnostic { position, key, message }| {
            let origin = position.as_ref().map(|one| resolve(one, self.source.as_ref()));
            let (file, line, flag) = match origin {
                Some(Origin::File { path, line }) => (Some(path), Some(line), None),
                Some(Origin::Flag(flag)) => (None, None, Some(flag)),
                None => (self.source.as_ref().map(|source| source.path.clone()), None, None),
            };
            let key = Some(key.as_str()).filter(|key| !key.is_empty());
            Problem { file, line, flag, key, message }
        })
    }
}

impl std::error::Error for ConfigErrors {}

/// A list of the problems.
impl Serialize for ConfigErrors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.problems())
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// A flag names its key itself.
impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(flag) = &self.flag {
            return write!(f, "{flag}: {}", self.message);
        }
        if let Some(file) = &self.file {
            write!(f, "{}:", file.display())?;
            self.line.iter().try_for_each(|line| write!(f, "{line}:"))?;
            f.write_str(" ")?;
        }
        self.key.iter().try_for_each(|key| write!(f, "{key}: "))?;
        f.write_str(self.message)
    }
}
