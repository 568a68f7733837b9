//! What is wrong with a configuration: where, which key, what, and what to do about it.

use std::fmt;
use std::path::Path;

use super::Origin;

/// Everything that was found wrong; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<Diagnostic>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnostic {
    pub(super) origin: Option<Origin>,
    /// The key as it is written in the file, such as `route.sni`.
    pub(super) key: String,
    /// What is wrong, then the remedy.
    pub(super) message: String,
}

impl Diagnostic {
    pub(super) fn at(origin: &Origin, key: &str, message: impl Into<String>) -> Self {
        Self { origin: Some(origin.clone()), key: key.into(), message: message.into() }
    }

    /// About the configuration as a whole.
    pub(super) fn without_origin(key: &str, message: impl Into<String>) -> Self {
        Self { origin: None, key: key.into(), message: message.into() }
    }
}

impl ConfigErrors {
    /// Names the file where a problem has no line of its own.
    pub(super) fn with_file(mut self, path: &Path) -> Self {
        for diagnostic in self.0.iter_mut().filter(|problem| problem.origin.is_none()) {
            diagnostic.key = format!("{}: {}", path.display(), diagnostic.key);
        }
        self
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Diagnostic { origin, key, message: text }) in self.0.iter().enumerate() {
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
