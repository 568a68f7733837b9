//! Options of `--route` and `--terminate`, which have the names of the keys of their tables.

use super::located::{Located, Position, Setting};
use super::value::{Parsed, Value};

/// The text of an option's value and the flag that it is part of.
#[derive(Clone, Debug)]
pub(super) struct OptionText {
    pub(super) position: Position,
    pub(super) text: String,
}

/// A table whose keys an option can set.
pub(super) trait OptionTable: Default {
    /// The options that set its keys, such as `health_check.type`.
    fn options() -> Vec<String>;

    /// Sets the key of a path; false if there is none.
    fn set_option(&mut self, path: &str, text: &OptionText) -> bool;
}

/// A key that an option can set.
pub(super) trait OptionKey {
    /// The options that set it, which start with `name`.
    fn options(name: &str) -> Vec<String>;

    /// Sets it, or the key of its table that `rest` names; false if there is none.
    fn set(&mut self, rest: &str, text: &OptionText) -> bool;
}

impl OptionText {
    /// The value of a key.
    pub(super) fn setting<T: Value>(&self) -> Setting<T> {
        Located { position: self.position.clone(), value: Parsed(T::parse(&self.text)) }
    }

    /// The values of a list, which commas separate.
    pub(super) fn split(&self) -> Vec<Self> {
        let texts = self.text.split(',').map(str::trim).filter(|text| !text.is_empty());
        texts.map(|text| Self { text: text.to_owned(), position: self.position.clone() }).collect()
    }
}

impl<T: Value> OptionKey for Option<Setting<T>> {
    fn options(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    fn set(&mut self, rest: &str, text: &OptionText) -> bool {
        *self = Some(text.setting());
        rest.is_empty()
    }
}

impl<T: Value> OptionKey for Vec<Setting<T>> {
    fn options(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    fn set(&mut self, rest: &str, text: &OptionText) -> bool {
        *self = text.split().iter().map(OptionText::setting).collect();
        rest.is_empty()
    }
}
