//! The tables of `docs/performance/results.md`.

use std::fmt::Write as _;

use serde_json::Value;

use super::values::{candidates, error, median, rows, word};

pub(super) fn all(measured: &Value) -> String {
    let machine = &measured["machine"];
    let mut page = format!(
        "\n{} cores, Linux {}, HAProxy {}. {} rounds of {} s each, interleaved; twice as many for \
         requests and responses. Other guests of the host took {:.1} % of the CPU time (steal).\n\n\
         ![Rates as ratios to HAProxy](results.svg)\n",
        machine["cores"],
        word(&machine["kernel"]),
        word(&machine["haproxy"]),
        measured["rounds"],
        measured["seconds"],
        measured["stolen"].as_f64().unwrap_or(f64::NAN) * 100.0
    );
    let titles = [
        ("rate", "Rate: median (median of the ratios to HAProxy in the same round)"),
        ("cpu", "CPU of the whole machine: s/GB of bulk, s per 1,000 of the rest; median (ratio)"),
        ("p50", "Time of a request and its response, µs, 50th percentile: median (ratio)"),
        ("p99", "Time of a request and its response, µs, 99th percentile: median (ratio)"),
    ];
    for (key, title) in titles {
        table(&mut page, measured, (key, title));
    }
    vs_direct(&mut page, measured);
    idle(&mut page, measured);
    slow_clients(&mut page, &measured["siege"]);
    page
}

fn head(page: &mut String, measured: &Value, title: &str) {
    let candidates = candidates(measured);
    let _ = write!(page, "\n### {title}\n\n| |");
    candidates.iter().for_each(|name| _ = write!(page, " {name} |"));
    let _ = write!(page, "\n|---|{}\n", "---:|".repeat(candidates.len()));
}

fn table(page: &mut String, measured: &Value, (key, title): (&str, &str)) {
    head(page, measured, title);
    for row in rows(measured, key) {
        let unit = if key == "rate" { &row.unit } else { "" };
        let _ = write!(page, "| {} {unit} |", row.load);
        for name in candidates(measured) {
            let Some((value, ratio)) = row.of(&name) else {
                page.push_str(" – |");
                continue;
            };
            let digits = if value < 100.0 { 2 } else { 0 };
            let _ = write!(page, " {value:.digits$} ({ratio:.2}) |");
        }
        page.push('\n');
    }
}

/// Comparison with a direct link, of candidates that leave the path or were never in it.
fn vs_direct(page: &mut String, measured: &Value) {
    let _ = write!(
        page,
        "\n### Comparison with a direct link\n\n\
         Medians of the ratios to a direct link: packet / redirect / forward / the link against \
         itself. p50 has the standard error of the rounds' mean.\n\n\
         | | cores | rate | CPU | p50 | p99 |\n|---|---:|---:|---:|---:|---:|\n"
    );
    let pairs = Vec::from_iter(measured["beside"].as_array().into_iter().flatten());
    let mut rows: Vec<[&Value; 2]> = Vec::new();
    for pair in &pairs {
        let row = [&pair["load"], &pair["cores"]];
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    for [load, cores] in rows {
        let of = if *cores == 0 { "any".to_owned() } else { cores.to_string() };
        let _ = write!(page, "| {} | {of} |", word(load));
        let is_it = |pair: &&Value| pair["load"] == *load && pair["cores"] == *cores;
        let row = Vec::from_iter(pairs.iter().copied().filter(is_it));
        for key in ["rate", "cpu", "p50", "p99"] {
            let cells =
                ["packet", "redirect", "forward", "direct"].map(|name| cell(&row, name, key));
            let cells = cells.join(" / ");
            let _ = write!(page, " {} |", if cells.contains("NaN") { "–" } else { &cells });
        }
        page.push('\n');
    }
}

/// Cell of the comparison with a direct link: median of one candidate's ratios.
fn cell(pairs: &[&Value], name: &str, key: &str) -> String {
    let ratio = |pair: &&Value| Some(pair["own"][key].as_f64()? / pair["cable"][key].as_f64()?);
    let of_it = pairs.iter().filter(|pair| pair["candidate"] == name);
    let ratios = Vec::from_iter(of_it.filter_map(ratio));
    let error = error(&ratios);
    let median = median(ratios);
    if key == "p50" { format!("{median:.3} ± {error:.3}") } else { format!("{median:.2}") }
}

/// Memory that an idle flow takes.
fn idle(page: &mut String, measured: &Value) {
    let idle = &measured["idle"];
    let title = format!("Memory of an idle flow, bytes ({} flows at once)", idle["flows"]);
    head(page, measured, &title);
    for (key, words) in [("user", "process"), ("kernel", "kernel, both peers included")] {
        let _ = write!(page, "| {words} |");
        for name in candidates(measured) {
            let results = idle["results"].as_array().into_iter().flatten();
            let found = results.filter(|one| one["candidate"] == name.as_str());
            let value = found.filter_map(|one| one[key].as_f64()).next().unwrap_or(f64::NAN);
            let _ = write!(page, " {value:.0} |");
        }
        page.push('\n');
    }
}

/// Rate of good clients among 10,000 slow ones.
fn slow_clients(page: &mut String, rounds: &Value) {
    let all = |key: &str| -> Vec<f64> {
        let rounds = rounds.as_array().into_iter().flatten();
        rounds.map(|round| round[key].as_f64().unwrap_or(f64::NAN)).collect()
    };
    let ratios = all("besieged").iter().zip(all("quiet")).map(|(now, then)| now / then).collect();
    let megabytes = |key: &str| median(all(key)) / 1e6;
    let _ = write!(
        page,
        "\n### Slow clients: 10,000 at once\n\nA third sends nothing, a third sends a byte a second, a \
         third sends all but the end of a 60 KB hello.\nGood connections, 32 at once: {:.0} /s \
         without them, {:.0} /s with them, ratio {:.2} in the same round.\nThe agent holds {:.0} MB, \
         {:.0} MB without them.\n",
        median(all("quiet")),
        median(all("besieged")),
        median(ratios),
        megabytes("resident"),
        megabytes("resident_quiet"),
    );
}
