//! Options of `--route` and `--terminate`, which have the names of the keys of their tables.

use crate::config::defaults;
use crate::config::located::{Located, Position, Setting};
use crate::config::schema::{Backend, BackendTable, HealthCheck, MAX_WEIGHT};
use crate::config::value::{Parsed, Value};

/// The text of an option's value and the flag that it is part of.
#[derive(Clone, Debug)]
pub(in crate::config) struct OptionText {
    pub(in crate::config) position: Position,
    pub(in crate::config) text: String,
}

/// A table whose keys an option can set.
pub(in crate::config) trait OptionTable: Default {
    /// The options that set its keys, such as `health_check.type`.
    fn options() -> Vec<String>;

    /// Sets the key of a path; false if there is none.
    fn set_option(&mut self, path: &str, text: &OptionText) -> bool;
}

/// A key that an option can set.
pub(in crate::config) trait OptionKey {
    /// The options that set it, which start with `name`.
    fn options(name: &str) -> Vec<String>;

    /// Sets it, or the key of its table that `rest` names; false if there is none.
    fn set(&mut self, rest: &str, text: &OptionText) -> bool;
}

impl OptionText {
    /// The value of a key.
    pub(in crate::config) fn setting<T: Value>(&self) -> Setting<T> {
        Located { position: self.position.clone(), value: Parsed(T::parse(&self.text)) }
    }

    /// The values of a list, which commas separate.
    pub(in crate::config) fn split(&self) -> Vec<Self> {
        let texts = self.text.split(',').map(str::trim).filter(|text| !text.is_empty());
        texts.map(|text| Self { text: text.to_owned(), position: self.position.clone() }).collect()
    }

    /// `ADDRESS`, or `ADDRESS weight=N`.
    fn backend(&self) -> Located<Backend> {
        let mut words = self.text.split_whitespace();
        let word = |text: &str| Self { text: text.to_owned(), ..self.clone() };
        let address = Some(word(words.next().unwrap_or_default()).setting());
        let weight = words.next_back().map(|last| match last.strip_prefix("weight=") {
            Some(weight) => word(weight).setting(),
            None => {
                let message = format!(
                    "\"{last}\" is no option of a back end; weight=N, 0 to {MAX_WEIGHT} (default \
                     {}), is one",
                    defaults::WEIGHT
                );
                Located { position: self.position.clone(), value: Parsed(Err(message)) }
            }
        });
        let table = Backend::Table(BackendTable { address, weight });
        Located { position: self.position.clone(), value: table }
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

impl OptionKey for Vec<Located<Backend>> {
    fn options(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    fn set(&mut self, rest: &str, text: &OptionText) -> bool {
        *self = text.split().iter().map(OptionText::backend).collect();
        rest.is_empty()
    }
}

impl OptionKey for Option<Located<HealthCheck>> {
    fn options(name: &str) -> Vec<String> {
        HealthCheck::options().iter().map(|key| format!("{name}.{key}")).collect()
    }

    fn set(&mut self, rest: &str, text: &OptionText) -> bool {
        let position = text.position.clone();
        let table = self.get_or_insert_with(|| Located { position, value: HealthCheck::default() });
        table.value.set_option(rest, text)
    }
}
