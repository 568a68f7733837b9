//! What is wrong with a configuration: where, which key, what, and what to do about it.

use std::fmt;
use std::path::Path;

use super::Origin;

/// Everything that was found wrong; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) origin: Option<Origin>,
    /// The key as it is written in the file, such as `route.sni`.
    pub(super) key: String,
    /// What is wrong, then the remedy.
    pub(super) text: String,
}

impl Problem {
    pub(super) fn new(origin: &Origin, key: &str, text: impl Into<String>) -> Self {
        Self { origin: Some(origin.clone()), key: key.into(), text: text.into() }
    }

    /// About the configuration as a whole.
    pub(super) fn overall(key: &str, text: impl Into<String>) -> Self {
        Self { origin: None, key: key.into(), text: text.into() }
    }
}

impl Problems {
    /// Names the file where a problem has no line of its own.
    pub(super) fn of(mut self, path: &Path) -> Self {
        for problem in self.0.iter_mut().filter(|problem| problem.origin.is_none()) {
            problem.key = format!("{}: {}", path.display(), problem.key);
        }
        self
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { origin, key, text }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match origin {
                Some(origin @ Origin::File { .. }) if key.is_empty() => {
                    write!(f, "{origin}: {text}")?
                }
                Some(origin @ Origin::File { .. }) => write!(f, "{origin}: {key}: {text}")?,
                Some(Origin::Flag(flag)) => write!(f, "{flag}: {text}")?,
                None => write!(f, "{key}: {text}")?,
            }
        }
        Ok(())
    }
}
