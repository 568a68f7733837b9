//! Reading of the TOML file.

use std::fs;
use std::path::Path;

use super::diagnostic::{ConfigErrors, Diagnostic};
use super::located::{Position, SourceFile};
use super::schema::ConfigFile;

/// Keys of snisplit before its first release, and the keys that replaced them.
const RENAMED_KEYS: [(&str, &str); 12] = [
    ("answer_timeout", "first_byte_timeout"),
    ("check", "health_check = { type = \"…\" }"),
    ("check_interval", "health_check = { interval = \"…\" }"),
    ("dial_timeout", "connect_timeout"),
    ("drain", "drain_timeout"),
    ("fall", "health_check = { fall = N }"),
    ("hello_bytes", "max_client_hello_bytes"),
    ("hello_timeout", "client_hello_timeout"),
    ("max_peeking", "max_pending_handshakes"),
    ("per_source", "max_connections_per_source"),
    ("rise", "health_check = { rise = N }"),
    ("source", "source_address"),
];

/// A file and what it holds.
pub(super) struct ParsedFile {
    pub(super) source: SourceFile,
    pub(super) file: ConfigFile,
}

/// Reads a file. An error of syntax is the only one reported: what follows it is uncertain.
pub(super) fn read(path: &Path) -> Result<ParsedFile, ConfigErrors> {
    let text = fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot be read: {error}");
        ConfigErrors {
            source: Some(SourceFile { path: path.into(), text: String::new() }),
            diagnostics: vec![Diagnostic { position: None, key: String::new(), message }],
        }
    })?;
    let source = SourceFile { path: path.into(), text };
    match toml::from_str(&source.text) {
        Ok(file) => Ok(ParsedFile { source, file }),
        Err(error) => {
            let diagnostics = vec![syntax_diagnostic(&error)];
            Err(ConfigErrors { source: Some(source), diagnostics })
        }
    }
}

fn syntax_diagnostic(error: &toml::de::Error) -> Diagnostic {
    let message = error.message().trim_end();
    let text = match UnknownKey::parse(message) {
        Some(unknown) => unknown.describe(),
        None if message.ends_with("expected a sequence") => {
            format!("{message}; put it in brackets, like [\"a.test\"]")
        }
        None => message.replace('\n', ", "),
    };
    let position = error.span().map(|span| Position::File(span.start));
    Diagnostic { position, key: String::new(), message: text }
}

/// What serde says of a key that a table does not have: `unknown field `x`, expected one of …`.
struct UnknownKey<'m> {
    name: &'m str,
    known: Vec<&'m str>,
}

impl<'m> UnknownKey<'m> {
    fn parse(message: &'m str) -> Option<Self> {
        let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
        Some(Self { name: quoted.next()?, known: quoted.collect() })
    }

    /// The problem, and the key that was meant.
    fn describe(&self) -> String {
        let Self { name, known } = self;
        let renamed = RENAMED_KEYS.iter().find(|(old, _)| old == name);
        let likeness = |key: &str| strsim::jaro(name, key);
        let near = known.iter().filter(|key| likeness(key) > 0.7);
        let nearest = near.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match (renamed, nearest) {
            (Some((_, new)), _) => format!("unknown key `{name}`; it is `{new}`"),
            (None, Some(near)) => format!("unknown key `{name}`; did you mean `{near}`?"),
            (None, None) => format!("unknown key `{name}`; the keys are {}", known.join(", ")),
        }
    }
}
