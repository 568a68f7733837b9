//! Runs the benchmark and writes what it found: JSON to `target`, tables to `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::run::root;
use crate::suite;

/// Everything below this line of the page is written anew.
const MARK: &str = "<!-- cargo xtask bench -->\n";
const REFERENCE: &str = "haproxy";
const CANDIDATES: [&str; 5] = ["direct", "copy", "splice", "sockmap", "haproxy"];

pub(crate) fn run(rounds: usize, seconds: u64) -> Result<()> {
    let out = root().join("target/bench.json");
    let args = [rounds.to_string(), seconds.to_string(), out.display().to_string()];
    suite::in_lab("bench", &args)?;
    let measured: Value = serde_json::from_str(&fs::read_to_string(&out)?)?;
    let page = root().join("docs/benchmarks.md");
    let text = fs::read_to_string(&page)?;
    let (head, _old) = text.split_once(MARK).context("docs/benchmarks.md has lost its mark")?;
    fs::write(&page, format!("{head}{MARK}{}", tables(&measured)))?;
    eprintln!("bench: {} and {}", out.display(), page.display());
    Ok(())
}

/// Values by load and candidate, a value a round, in the order of the rounds.
type Values = BTreeMap<(usize, String, String), BTreeMap<String, Vec<f64>>>;

fn tables(measured: &Value) -> String {
    let machine = &measured["machine"];
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut page = format!(
        "\n{} cores, Linux {}, HAProxy {}; {} rounds of {} s each, interleaved.\n",
        machine["cores"],
        text(&machine["kernel"]),
        text(&machine["haproxy"]),
        measured["rounds"],
        measured["seconds"]
    );
    let titles = [
        ("rate", "Rate: median (median of the ratios to HAProxy in the same round)"),
        ("cpu", "CPU of the whole machine: s/GB, or s per 1,000 of the rest; median (ratio)"),
    ];
    for (key, title) in titles {
        let _ = write!(page, "\n### {title}\n\n| |");
        CANDIDATES.iter().for_each(|name| _ = write!(page, " {name} |"));
        let _ = write!(page, "\n|---|{}\n", "---:|".repeat(CANDIDATES.len()));
        for ((_, load, unit), by_candidate) in values(measured, key) {
            let unit = if key == "rate" { unit } else { String::new() };
            let _ = write!(page, "| {load} {unit} |");
            for name in CANDIDATES {
                let (own, base) = (&by_candidate[name], &by_candidate[REFERENCE]);
                let ratios = own.iter().zip(base).map(|(own, base)| own / base).collect();
                let digits = if own[0] < 100.0 { 2 } else { 0 };
                let _ = write!(page, " {:.digits$} ({:.2}) |", median(own.clone()), median(ratios));
            }
            page.push('\n');
        }
    }
    page + &siege(&measured["siege"])
}

/// What 10,000 bad clients cost the good ones.
fn siege(rounds: &Value) -> String {
    let all = |key: &str| -> Vec<f64> {
        let rounds = rounds.as_array().into_iter().flatten();
        rounds.map(|round| round[key].as_f64().unwrap_or(f64::NAN)).collect()
    };
    let ratios = all("besieged").iter().zip(all("quiet")).map(|(now, then)| now / then).collect();
    let megabytes = |key: &str| median(all(key)) / 1e6;
    format!(
        "\n### Siege: 10,000 bad clients\n\nA third says nothing, a third drips a byte a second, a \
         third sends all but the end of a 60 KB hello.\nGood connections, 32 at once: {:.0} /s in \
         peace, {:.0} /s under siege, ratio {:.2} in the same round.\nThe agent holds {:.0} MB, \
         {:.0} MB before.\n",
        median(all("quiet")),
        median(all("besieged")),
        median(ratios),
        megabytes("resident"),
        megabytes("resident_quiet"),
    )
}

fn values(measured: &Value, key: &str) -> Values {
    let mut values = Values::new();
    let mut order = Vec::new();
    for row in measured["results"].as_array().into_iter().flatten() {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let load = text("load");
        let place = order.iter().position(|known| *known == load).unwrap_or_else(|| {
            order.push(load.clone());
            order.len() - 1
        });
        let of_load = values.entry((place, load, text("unit"))).or_default();
        of_load.entry(text("candidate")).or_default().push(row[key].as_f64().unwrap_or(f64::NAN));
    }
    values
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
