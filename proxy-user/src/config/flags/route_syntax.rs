//! The syntax of `--route` and `--terminate`: `NAMES=BACKENDS[;KEY=VALUE]…`.

use crate::config::diagnostic::Diagnostics;
use crate::config::located::{Located, Position};
use crate::config::options::{OptionTable, OptionText};

/// Keys whose values stand in front of the first `;`.
const POSITIONAL: [&str; 2] = ["sni", "backends"];

/// `a.test,www.a.test=10.0.0.5:443,10.0.0.6:443 weight=3;acme=backend`. Validation reports what is
/// missing, as it does for a file.
pub(super) fn parse<T: OptionTable>(
    flag: &str,
    text: &str,
    diagnostics: &mut Diagnostics,
) -> Located<T> {
    let position = Position::Flag(format!("{flag} '{text}'"));
    let option =
        |text: &str| OptionText { position: position.clone(), text: text.trim().to_owned() };
    let mut parts = text.split(';');
    let first = parts.next().unwrap_or_default();
    let (names, backends) = first.split_once('=').unwrap_or((first, ""));
    let mut table = T::default();
    table.set_option("sni", &option(names));
    table.set_option("backends", &option(backends));
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let key = key.trim();
        if POSITIONAL.contains(&key) || !table.set_option(key, &option(value)) {
            let mut options = T::options();
            options.retain(|key| !POSITIONAL.contains(&key.as_str()));
            let options = options.join("=…, ");
            let message = format!("\"{}\" is no option; {options}=… are", part.trim());
            diagnostics.report(&position, "", message);
        }
    }
    Located { position, value: table }
}
