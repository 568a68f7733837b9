//! Flags that win over the file. A list given by flags replaces the file's list.

use clap::builder::{PossibleValue, PossibleValuesParser, Resettable, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::diagnostic::Diagnostics;
use super::keys::{self, Key};
use super::located::{Located, Position, Setting};
use super::schema::{Acme, ConfigFile, Http, Listener};
use super::value::Value;

mod route_syntax;

use super::options::OptionText;

/// A flag that sets a key.
#[derive(Debug)]
struct Flag {
    /// Without the dashes.
    name: &'static str,
    value_name: &'static str,
    /// The key that it sets, whose documentation and default `--help` shows.
    key: &'static str,
    /// What `--help` says besides, or an empty string.
    note: &'static str,
    set: Setter,
}

/// How a flag sets its key.
#[derive(Clone, Copy, Debug)]
enum Setter {
    Single(fn(&mut ConfigFile, &OptionText)),
    /// The flag may be repeated.
    List(fn(&mut ConfigFile, &[OptionText])),
    /// A table of names and back ends; the flag may be repeated.
    Tables(fn(&mut ConfigFile, &[String], &mut Diagnostics)),
}

/// The flags of a command line that were given, which win over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    given: Vec<GivenFlag>,
}

#[derive(Clone, Debug)]
struct GivenFlag {
    flag: &'static Flag,
    values: Vec<String>,
}

/// Heading of these flags in `--help`.
pub(crate) const FLAGS_HEADING: &str = "Configuration (wins over the file)";

const ROUTE_VALUE: &str = "NAMES=BACKENDS[;KEY=VALUE]…";

/// All flags, in the order of `--help`.
static FLAGS: [Flag; 31] = [
    single("instance", "NAME", "instance", |file, text| file.instance = some(text)),
    single("engine", "ENGINE", "engine", |file, text| file.engine = some(text)),
    single("acme-bypass", "WHICH", "acme_bypass", |file, text| file.acme_bypass = some(text)),
    Flag {
        note: "Replaces the listeners of the file.",
        ..list("listen", "ADDR", "listener.address", |file, texts| {
            let listener = |text: &OptionText| Located {
                position: text.position.clone(),
                value: Listener { address: some(text), ..Listener::default() },
            };
            file.listener = texts.iter().map(listener).collect();
        })
    },
    Flag {
        name: "route",
        value_name: ROUTE_VALUE,
        key: "route",
        note: "Example: 'a.test,www.a.test=10.0.0.5:443,10.0.0.6:443 weight=3;acme=backend'. The \
               keys are those of [[route]]. Replaces the routes of the file.",
        set: Setter::Tables(|file, texts, diagnostics| {
            let parse = |text: &String| route_syntax::parse("--route", text, diagnostics);
            file.route = texts.iter().map(parse).collect();
        }),
    },
    Flag {
        name: "terminate",
        value_name: ROUTE_VALUE,
        key: "terminate",
        note: "Example: 'front.test=127.0.0.1:8080;challenge=http-01'. The keys are those of \
               [[terminate]]. Replaces those of the file.",
        set: Setter::Tables(|file, texts, diagnostics| {
            let parse = |text: &String| route_syntax::parse("--terminate", text, diagnostics);
            file.terminate = texts.iter().map(parse).collect();
        }),
    },
    single("acme-directory", "URL", "acme.directory", |file, text| {
        acme(file, text).directory = some(text);
    }),
    list("acme-contact", "URL", "acme.contact", |file, texts| {
        if let Some(first) = texts.first() {
            acme(file, first).contact = all(texts);
        }
    }),
    single("acme-ca-file", "FILE", "acme.ca_file", |file, text| {
        acme(file, text).ca_file = some(text);
    }),
    single("acme-profile", "NAME", "acme.profile", |file, text| {
        acme(file, text).profile = some(text);
    }),
    single("state-dir", "FOLDER", "acme.state_dir", |file, text| {
        acme(file, text).state_dir = some(text);
    }),
    single("http", "ADDR", "http.address", |file, text| {
        let http = Http { address: some(text) };
        file.http = Some(Located { position: text.position.clone(), value: http });
    }),
    Flag {
        note: "For every listener.",
        ..single("client-hello-timeout", "TIME", "listener.client_hello_timeout", |file, text| {
            listeners(file).for_each(|one| one.client_hello_timeout = some(text));
        })
    },
    Flag {
        note: "For every listener.",
        ..list("proxy-protocol-from", "CIDR", "listener.proxy_protocol_from", |file, texts| {
            listeners(file).for_each(|one| one.proxy_protocol_from = all(texts));
        })
    },
    Flag {
        note: "For every listener.",
        ..single("starttls", "PROTOCOL", "listener.starttls", |file, text| {
            listeners(file).for_each(|one| one.starttls = some(text));
        })
    },
    single("max-client-hello-bytes", "BYTES", "limits.max_client_hello_bytes", |file, text| {
        file.limits.max_client_hello_bytes = some(text);
    }),
    single("connect-timeout", "TIME", "limits.connect_timeout", |file, text| {
        file.limits.connect_timeout = some(text);
    }),
    single("first-byte-timeout", "TIME", "limits.first_byte_timeout", |file, text| {
        file.limits.first_byte_timeout = some(text);
    }),
    single("max-connections", "N", "limits.max_connections", |file, text| {
        file.limits.max_connections = some(text);
    }),
    single("max-pending-handshakes", "N", "limits.max_pending_handshakes", |file, text| {
        file.limits.max_pending_handshakes = some(text);
    }),
    single("max-connections-per-source", "N", "limits.max_connections_per_source", |file, text| {
        file.limits.max_connections_per_source = some(text);
    }),
    single("accept-rate", "N", "limits.accept_rate", |file, text| {
        file.limits.accept_rate = some(text);
    }),
    single("idle-timeout", "TIME", "limits.idle_timeout", |file, text| {
        file.limits.idle_timeout = some(text);
    }),
    single("keepalive", "TIME", "limits.keepalive", |file, text| {
        file.limits.keepalive = some(text);
    }),
    single("user-timeout", "TIME", "limits.user_timeout", |file, text| {
        file.limits.user_timeout = some(text);
    }),
    list("backends-allowed", "CIDR", "limits.backends_allowed", |file, texts| {
        file.limits.backends_allowed = all(texts);
    }),
    list("nameserver", "ADDR", "nameservers", |file, texts| file.nameservers = all(texts)),
    single("drain-timeout", "TIME", "drain_timeout", |file, text| file.drain_timeout = some(text)),
    single("admin", "ADDR", "admin.address", |file, text| file.admin.address = some(text)),
    single("access-log", "FILE", "access_log", |file, text| file.access_log = some(text)),
    single("access-log-format", "FORMAT", "access_log_format", |file, text| {
        file.access_log_format = some(text);
    }),
];

/// The flag that sets a key, without the dashes.
pub(crate) fn flag_for_key(path: &str) -> Option<&'static str> {
    FLAGS.iter().find(|flag| flag.key == path).map(|flag| flag.name)
}

const fn single(
    name: &'static str,
    value_name: &'static str,
    key: &'static str,
    set: fn(&mut ConfigFile, &OptionText),
) -> Flag {
    Flag { name, value_name, key, note: "", set: Setter::Single(set) }
}

const fn list(
    name: &'static str,
    value_name: &'static str,
    key: &'static str,
    set: fn(&mut ConfigFile, &[OptionText]),
) -> Flag {
    Flag { name, value_name, key, note: "Replaces the list of the file.", set: Setter::List(set) }
}

fn some<T: Value>(text: &OptionText) -> Option<Setting<T>> {
    Some(text.setting())
}

fn all<T: Value>(texts: &[OptionText]) -> Vec<Setting<T>> {
    texts.iter().map(OptionText::setting).collect()
}

/// `[acme]`; if the file has none, the flag stands for its position.
fn acme<'f>(file: &'f mut ConfigFile, text: &OptionText) -> &'f mut Acme {
    let position = text.position.clone();
    let empty = || Located { position, value: Acme::default() };
    &mut file.acme.get_or_insert_with(empty).value
}

fn listeners(file: &mut ConfigFile) -> impl Iterator<Item = &mut Listener> {
    file.listener.iter_mut().map(|listener| &mut listener.value)
}

impl Overrides {
    /// Sets the keys of the flags that were given.
    pub(super) fn apply_to(&self, file: &mut ConfigFile, diagnostics: &mut Diagnostics) {
        for GivenFlag { flag, values } in &self.given {
            let text = |value: &String| OptionText {
                position: Position::Flag(format!("--{} {value}", flag.name)),
                text: value.clone(),
            };
            let texts: Vec<OptionText> = values.iter().map(text).collect();
            match flag.set {
                Setter::Single(set) => texts.iter().for_each(|text| set(file, text)),
                Setter::List(set) => set(file, &texts),
                Setter::Tables(set) => set(file, values, diagnostics),
            }
        }
    }

    /// Whether the flags give a listener, and names with back ends: all that a configuration needs.
    pub fn are_complete(&self) -> bool {
        let has = |name: &str| self.given.iter().any(|given| given.flag.name == name);
        has("listen") && (has("route") || has("terminate"))
    }
}

impl Args for Overrides {
    fn augment_args(command: Command) -> Command {
        let keys = keys::all();
        let arg = |flag: &Flag| flag.arg(keys.iter().find(|key| key.path == flag.key));
        command.next_help_heading(FLAGS_HEADING).args(FLAGS.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |flag: &'static Flag| {
            let values: Vec<String> = matches.get_many(flag.name)?.cloned().collect();
            Some(GivenFlag { flag, values })
        };
        Ok(Self { given: FLAGS.iter().filter_map(given).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Flag {
    fn arg(&self, key: Option<&Key>) -> Arg {
        let (summary, description) = key.map_or_else(Default::default, |key| self.help(key));
        let arg = Arg::new(self.name)
            .long(self.name)
            .value_name(self.value_name)
            .help(summary)
            .long_help(description);
        let arg = match self.set {
            Setter::Single(_) => arg.action(ArgAction::Set),
            Setter::List(_) | Setter::Tables(_) => arg.action(ArgAction::Append),
        };
        let choices = key.map(|key| key.choices.as_slice()).unwrap_or_default();
        arg.value_parser(match choices {
            [] => Resettable::Reset,
            choices => {
                let value = |choice: &keys::KeyChoice| {
                    PossibleValue::new(choice.label.clone()).help(plain_text(&choice.meaning))
                };
                let values: PossibleValuesParser =
                    choices.iter().map(value).collect::<Vec<_>>().into();
                Resettable::Value(ValueParser::from(values))
            }
        })
    }

    /// The help text of `-h`, and that of `--help`.
    fn help(&self, key: &Key) -> (String, String) {
        let description = plain_text(&key.description);
        let first = description.split_inclusive(". ").next().unwrap_or_default();
        let first = first.trim_end().trim_end_matches('.').to_owned();
        let repeat = match self.set {
            Setter::Single(_) => "",
            Setter::List(_) | Setter::Tables(_) => "May be repeated.",
        };
        let unit = key.unit.as_ref().map_or_else(String::new, |unit| format!("[unit: {unit}]"));
        let default = key.default.as_ref().filter(|default| *default != "[]");
        let default = default.map_or_else(String::new, |default| format!("[default: {default}]"));
        let join = |parts: &[&str]| {
            let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
            parts.join(" ")
        };
        (
            join(&[&first, &unit, &default]),
            join(&[&description, self.note, repeat, &unit, &default]),
        )
    }
}

/// Markdown of a description as plain text.
fn plain_text(markdown: &str) -> String {
    markdown.replace('`', "")
}
