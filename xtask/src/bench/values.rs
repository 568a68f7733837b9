//! Measured values, by load and candidate.

use std::collections::BTreeMap;

use serde_json::Value;

/// Candidate that all ratios refer to.
const REFERENCE: &str = "haproxy";

/// One row of a table: a load.
pub(super) struct Row {
    pub(super) load: String,
    pub(super) unit: String,
    /// Values of each candidate, one per round.
    by_candidate: BTreeMap<String, Vec<f64>>,
}

impl Row {
    /// Median of a candidate, and median of its ratios to the reference in the same round.
    pub(super) fn median_and_ratio(&self, candidate: &str) -> Option<(f64, f64)> {
        let own = self.by_candidate.get(candidate)?;
        Some((median(own.clone()), self.ratio(candidate, REFERENCE)?))
    }

    /// Median of the ratios of two candidates in the same round.
    fn ratio(&self, candidate: &str, base: &str) -> Option<f64> {
        let (own, base) = (self.by_candidate.get(candidate)?, self.by_candidate.get(base)?);
        Some(median(own.iter().zip(base).map(|(own, base)| own / base).collect()))
    }
}

/// Rows whose results have this key, in the order of the benchmark.
pub(super) fn rows(measured: &Value, key: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for result in measured["results"].as_array().into_iter().flatten() {
        let Some(value) = result[key].as_f64() else { continue };
        let [load, unit, candidate] = ["load", "unit", "candidate"].map(|key| text(&result[key]));
        let index = rows.iter().position(|row| row.load == load);
        let index = index.unwrap_or_else(|| {
            rows.push(Row { load, unit, by_candidate: BTreeMap::new() });
            rows.len() - 1
        });
        rows[index].by_candidate.entry(candidate).or_default().push(value);
    }
    rows
}

/// Names of the candidates, in the order of the tables.
pub(super) fn candidates(measured: &Value) -> Vec<String> {
    measured["candidates"].as_array().into_iter().flatten().map(text).collect()
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Standard error of the mean.
pub(super) fn standard_error(values: &[f64]) -> f64 {
    let many = values.len() as f64;
    let mean = values.iter().sum::<f64>() / many;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (squares / (many - 1.0) / many).sqrt()
}
