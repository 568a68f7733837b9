//! The keys of the configuration as data, for help texts and the reference.

use std::sync::LazyLock;

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, transform_subschemas};
use serde_json::{Map, Value, json};

use super::schema::ConfigFile;

/// A key, or a table.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// All names on the way to it, such as `limits.connect_timeout`.
    pub(crate) path: String,
    pub(crate) description: String,
    /// The type for people; empty for a table.
    pub(crate) type_name: String,
    pub(crate) unit: Option<String>,
    pub(crate) default: Option<String>,
    pub(crate) is_required: bool,
    /// Whether there may be several of it.
    pub(crate) is_list: bool,
    /// The values of a set.
    pub(crate) choices: Vec<KeyChoice>,
    /// Bounds of a number.
    pub(crate) range: Option<KeyRange>,
}

impl Key {
    /// Its name in its table.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    pub(crate) fn is_table(&self) -> bool {
        self.type_name.is_empty()
    }
}

/// One value of a set.
#[derive(Clone, Debug)]
pub(crate) struct KeyChoice {
    pub(crate) label: String,
    pub(crate) meaning: String,
}

/// Bounds of a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRange {
    pub(crate) min: u64,
    pub(crate) max: Option<u64>,
}

/// The JSON schema of a configuration file.
pub(crate) fn json_schema() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.transforms.push(Box::new(RecursiveTransform(drop_null)));
    let mut schema = settings.into_generator().into_root_schema_for::<ConfigFile>();
    require_keys(&mut schema);
    schema.insert("title".into(), json!("Configuration of snisplit"));
    schema.to_value()
}

/// TOML has no null: an optional key is absent.
fn drop_null(schema: &mut Schema) {
    let null = json!("null");
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|kind| *kind != null);
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    let Some(Value::Array(variants)) = schema.get_mut("anyOf") else { return };
    variants.retain(|variant| variant.get("type") != Some(&null));
    if let [Value::Object(only)] = variants.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        for (keyword, value) in only {
            schema.ensure_object().entry(keyword).or_insert(value);
        }
    }
}

/// Turns the mark of a required key into `required` of its table.
fn require_keys(schema: &mut Schema) {
    transform_subschemas(&mut require_keys, schema);
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    let mut required = Vec::new();
    for (name, property) in properties.iter_mut() {
        if property.as_object_mut().and_then(|keywords| keywords.remove("x-required")).is_some() {
            required.push(json!(name));
        }
    }
    if !required.is_empty() {
        schema.insert("required".into(), Value::Array(required));
    }
}

/// All keys and tables, in the order of the schema; the keys of a table follow it.
pub(crate) fn all() -> &'static [Key] {
    static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
        let mut keys = Vec::new();
        if let Value::Object(root) = json_schema() {
            collect(&root, "", &mut keys);
        }
        keys
    });
    &KEYS
}

fn collect(table: &Map<String, Value>, prefix: &str, keys: &mut Vec<Key>) {
    let no_keys = Map::new();
    let properties = table.get("properties").and_then(Value::as_object).unwrap_or(&no_keys);
    let required: Vec<&str> = table
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    for (name, property) in properties {
        let Some(property) = property.as_object() else { continue };
        let items = property.get("items").and_then(Value::as_object);
        let element = items.unwrap_or(property);
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        keys.push(key(path.clone(), property, element, required.contains(&name.as_str())));
        collect(element, &path, keys);
        let variants = element.get("anyOf").and_then(Value::as_array);
        for variant in variants.into_iter().flatten().filter_map(Value::as_object) {
            collect(variant, &path, keys);
        }
    }
}

fn key(
    path: String,
    property: &Map<String, Value>,
    element: &Map<String, Value>,
    is_required: bool,
) -> Key {
    let text = |keyword: &str| property.get(keyword).and_then(Value::as_str).map(reflow);
    let choices = element.get("oneOf").and_then(Value::as_array);
    let choices = choices.into_iter().flatten().filter_map(|choice| {
        let text = |keyword: &str| choice.get(keyword).and_then(Value::as_str).map(str::to_owned);
        Some(KeyChoice { label: text("const")?, meaning: text("description")? })
    });
    let number = |keyword: &str| element.get(keyword).and_then(Value::as_u64);
    let title = element.get("title").and_then(Value::as_str);
    let is_table = element.contains_key("properties");
    Key {
        path,
        description: text("description").unwrap_or_default(),
        type_name: title.filter(|_| !is_table).unwrap_or_default().to_owned(),
        unit: text("x-unit"),
        default: property
            .get("default")
            .map(|default| default.as_str().map_or_else(|| default.to_string(), str::to_owned)),
        is_required,
        is_list: property.contains_key("items"),
        choices: choices.collect(),
        range: number("minimum").map(|min| KeyRange { min, max: number("maximum") }),
    }
}

/// Joins the lines of a documentation comment.
fn reflow(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
