//! The tables of `docs/performance/results.md`.

use std::fmt::Write as _;

use serde_json::Value;

use super::values::{candidates, median, rows, standard_error, text};

/// Renders the tables as Markdown.
pub(super) fn render(measured: &Value) -> String {
    let machine = &measured["machine"];
    let mut page = format!(
        "\n{} cores, Linux {}, HAProxy {}. {} rounds of {} s each, interleaved; twice as many for \
         requests and responses. Other guests of the host took {:.1} % of the CPU time (steal).\n\n\
         ![Rates as ratios to HAProxy](results.svg)\n",
        machine["cores"],
        text(&machine["kernel"]),
        text(&machine["haproxy"]),
        measured["rounds"],
        measured["seconds"],
        measured["steal"].as_f64().unwrap_or(f64::NAN) * 100.0
    );
    let titles = [
        ("rate", "Rate: median (median of the ratios to HAProxy in the same round)"),
        ("cpu", "CPU of the whole machine: s/GB of bulk, s per 1,000 of the rest; median (ratio)"),
        ("p50", "Time of a request and its response, µs, 50th percentile: median (ratio)"),
        ("p99", "Time of a request and its response, µs, 99th percentile: median (ratio)"),
    ];
    for (key, title) in titles {
        write_table(&mut page, measured, key, title);
    }
    write_direct_comparison(&mut page, measured);
    write_idle_memory(&mut page, measured);
    write_slow_clients(&mut page, &measured["slow_clients"]);
    page
}

fn write_header(page: &mut String, measured: &Value, title: &str) {
    let candidates = candidates(measured);
    let _ = write!(page, "\n### {title}\n\n| |");
    candidates.iter().for_each(|name| _ = write!(page, " {name} |"));
    let _ = write!(page, "\n|---|{}\n", "---:|".repeat(candidates.len()));
}

fn write_table(page: &mut String, measured: &Value, key: &str, title: &str) {
    write_header(page, measured, title);
    for row in rows(measured, key) {
        let unit = if key == "rate" { &row.unit } else { "" };
        let _ = write!(page, "| {} {unit} |", row.load);
        for name in candidates(measured) {
            let Some((value, ratio)) = row.median_and_ratio(&name) else {
                page.push_str(" – |");
                continue;
            };
            let digits = if value < 100.0 { 2 } else { 0 };
            let _ = write!(page, " {value:.digits$} ({ratio:.2}) |");
        }
        page.push('\n');
    }
}

/// Writes the comparison with a direct link, for candidates without a socket in the path of a flow.
fn write_direct_comparison(page: &mut String, measured: &Value) {
    let _ = write!(
        page,
        "\n### Comparison with a direct link\n\n\
         Medians of the ratios to a direct link: packet / redirect / forward / the link against \
         itself. p50 has the standard error of the rounds' mean.\n\n\
         | | cores | rate | CPU | p50 | p99 |\n|---|---:|---:|---:|---:|---:|\n"
    );
    let pairs = Vec::from_iter(measured["vs_direct"].as_array().into_iter().flatten());
    let mut rows: Vec<[&Value; 2]> = Vec::new();
    for pair in &pairs {
        let row = [&pair["load"], &pair["cores"]];
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    for [load, cores] in rows {
        let cores_text = if *cores == 0 { "any".to_owned() } else { cores.to_string() };
        let _ = write!(page, "| {} | {cores_text} |", text(load));
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

/// Formats a cell of the comparison with a direct link: the median of one candidate's ratios.
fn cell(pairs: &[&Value], name: &str, key: &str) -> String {
    let ratio = |pair: &&Value| {
        Some(pair["candidate_result"][key].as_f64()? / pair["direct"][key].as_f64()?)
    };
    let of_candidate = pairs.iter().filter(|pair| pair["candidate"] == name);
    let ratios = Vec::from_iter(of_candidate.filter_map(ratio));
    let error = standard_error(&ratios);
    let median = median(ratios);
    if key == "p50" { format!("{median:.3} ± {error:.3}") } else { format!("{median:.2}") }
}

/// Writes the table of the memory that an idle flow takes.
fn write_idle_memory(page: &mut String, measured: &Value) {
    let idle = &measured["idle"];
    let title = format!("Memory of an idle flow, bytes ({} flows at once)", idle["flows"]);
    write_header(page, measured, &title);
    for (key, title) in [("user", "process"), ("kernel", "kernel, both peers included")] {
        let _ = write!(page, "| {title} |");
        for name in candidates(measured) {
            let results = idle["results"].as_array().into_iter().flatten();
            let found = results.filter(|one| one["candidate"] == name.as_str());
            let value = found.filter_map(|one| one[key].as_f64()).next().unwrap_or(f64::NAN);
            let _ = write!(page, " {value:.0} |");
        }
        page.push('\n');
    }
}

/// Writes the rate of good clients while 10,000 slow clients are connected.
fn write_slow_clients(page: &mut String, rounds: &Value) {
    let all = |key: &str| -> Vec<f64> {
        let rounds = rounds.as_array().into_iter().flatten();
        rounds.map(|round| round[key].as_f64().unwrap_or(f64::NAN)).collect()
    };
    let ratios =
        all("under_attack").iter().zip(all("undisturbed")).map(|(now, then)| now / then).collect();
    let megabytes = |key: &str| median(all(key)) / 1e6;
    let _ = write!(
        page,
        "\n### Slow clients: 10,000 at once\n\nA third sends nothing, a third sends a byte a second, a \
         third sends all but the end of a 60 KB hello.\nGood connections, 32 at once: {:.0} /s \
         without them, {:.0} /s with them, ratio {:.2} in the same round.\nThe agent holds {:.0} MB, \
         {:.0} MB without them.\n",
        median(all("undisturbed")),
        median(all("under_attack")),
        median(ratios),
        megabytes("resident"),
        megabytes("resident_undisturbed"),
    );
}
