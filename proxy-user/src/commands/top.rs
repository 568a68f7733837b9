//! `snisplit top`: shows the rates of offloaded flows, the busiest flow first.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::flows::{FlowList, FlowRow};
use crate::cli::OutputFormat;

/// Lines of a terminal that show no flow: totals, titles, and the line of the cursor.
const NON_FLOW_LINES: usize = 3;

/// Prints the flows every `interval`, `iterations` times or until standard output is closed. On a
/// terminal, each table replaces the one before. The JSON output has one line for each reading.
///
/// # Errors
///
/// The pins of the instance cannot be read.
pub fn run(
    instance: &str,
    interval: Duration,
    iterations: Option<u64>,
    output: OutputFormat,
) -> Result<()> {
    let mut out = io::stdout();
    let mut previous = (Instant::now(), FlowList::read(instance)?);
    for _ in 0..iterations.unwrap_or(u64::MAX) {
        sleep(interval);
        let now = (Instant::now(), FlowList::read(instance)?);
        let FlowList(flows) = &now.1;
        let table = RateTable::from_samples(&previous.1, flows, now.0 - previous.0);
        let text = match output {
            OutputFormat::Json => serde_json::to_string(&table)?,
            OutputFormat::Text => table.to_screen(&out),
        };
        match writeln!(out, "{text}") {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
        previous = now;
    }
    Ok(())
}

/// Flows with their rates, the busiest first.
#[derive(Serialize)]
#[serde(transparent)]
struct RateTable<'f>(Vec<RateRow<'f>>);

/// A flow and its rates in bytes per second.
#[derive(Serialize)]
struct RateRow<'f> {
    #[serde(flatten)]
    flow: &'f FlowRow,
    bytes_per_second_up: f64,
    bytes_per_second_down: f64,
}

impl<'f> RateTable<'f> {
    fn from_samples(
        FlowList(previous): &FlowList,
        current: &'f [FlowRow],
        elapsed: Duration,
    ) -> Self {
        let key = |flow: &FlowRow| -> (SocketAddr, SocketAddr) { (flow.client, flow.backend) };
        let previous: HashMap<_, _> =
            previous.iter().map(|flow| (key(flow), [flow.bytes_up, flow.bytes_down])).collect();
        let rates = |flow: &FlowRow| {
            // A flow without an earlier sample counts from 0.
            let [up, down] = previous.get(&key(flow)).copied().unwrap_or_default();
            // After a handover the counters of a flow start again at 0.
            let moved = [flow.bytes_up.saturating_sub(up), flow.bytes_down.saturating_sub(down)];
            moved.map(|bytes| bytes as f64 / elapsed.as_secs_f64())
        };
        let row = |flow: &'f FlowRow| {
            let [bytes_per_second_up, bytes_per_second_down] = rates(flow);
            RateRow { flow, bytes_per_second_up, bytes_per_second_down }
        };
        let mut rows: Vec<RateRow<'f>> = current.iter().map(row).collect();
        let total = |row: &RateRow<'_>| row.bytes_per_second_up + row.bytes_per_second_down;
        rows.sort_by(|a, b| total(b).total_cmp(&total(a)));
        Self(rows)
    }

    /// The table as text. On a terminal it fits the window and replaces what is there.
    fn to_screen(&self, out: &io::Stdout) -> String {
        let (clear_screen, rows) = match out.is_terminal() {
            true => ("\x1b[H\x1b[J", tcgetwinsize(out).map_or(24, |size| size.ws_row.into())),
            false => ("", usize::MAX),
        };
        let rows = rows.saturating_sub(NON_FLOW_LINES);
        format!("{clear_screen}{}", TopView { table: self, rows })
    }
}

/// Table of at most `rows` flows, as text.
struct TopView<'t> {
    table: &'t RateTable<'t>,
    rows: usize,
}

impl fmt::Display for TopView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RateTable(flows) = self.table;
        let up = megabits(flows.iter().map(|row| row.bytes_per_second_up).sum());
        let down = megabits(flows.iter().map(|row| row.bytes_per_second_down).sum());
        writeln!(f, "{} flows, Mbit/s: {up:.1} up, {down:.1} down", flows.len())?;
        let titles = ["Mbit/s up", "down", "MB up", "down", "age s"];
        titles.iter().try_for_each(|title| write!(f, "{title:>11}"))?;
        writeln!(f, "  {:<8} flow", "engine")?;
        for RateRow { flow, bytes_per_second_up: up, bytes_per_second_down: down } in
            flows.iter().take(self.rows)
        {
            let FlowRow { engine, client, backend, route, .. } = flow;
            write!(f, "{:>11.1}{:>11.1}", megabits(*up), megabits(*down))?;
            write!(
                f,
                "{:>11.1}{:>11.1}{:>11}",
                megabytes(flow.bytes_up),
                megabytes(flow.bytes_down),
                flow.age_seconds
            )?;
            writeln!(f, "  {engine:<8} {client} -> {backend} {route}")?;
        }
        Ok(())
    }
}

fn megabits(bytes: f64) -> f64 {
    bytes * 8.0 / 1e6
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
