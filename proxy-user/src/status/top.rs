//! `snisplit top`: the flows that the kernel carries, those first that move most.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::termios::tcgetwinsize;

use super::FlowList;
use super::flows::FlowRow;

/// Lines of a terminal that are no flow's: the sums, the titles, and where the cursor is left.
const NON_FLOW_LINES: usize = 3;

/// Prints the flows every `interval`, `iterations` times or until standard output is closed. On a
/// terminal each reading replaces the one before.
///
/// # Errors
///
/// The pins of the instance cannot be read.
pub fn run(instance: &str, interval: Duration, iterations: Option<u64>) -> Result<()> {
    let mut out = io::stdout();
    let mut previous = (Instant::now(), FlowList::read(instance)?);
    for _ in 0..iterations.unwrap_or(u64::MAX) {
        sleep(interval);
        let now = (Instant::now(), FlowList::read(instance)?);
        let FlowList(flows) = &now.1;
        let table = RateTable::from_samples(&previous.1, flows, now.0 - previous.0);
        let (clear_screen, rows) = match out.is_terminal() {
            true => ("\x1b[H\x1b[J", tcgetwinsize(&out).map_or(24, |size| size.ws_row.into())),
            false => ("", usize::MAX),
        };
        let rows = rows.saturating_sub(NON_FLOW_LINES);
        match writeln!(out, "{clear_screen}{}", TopView { table: &table, rows }) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
        previous = now;
    }
    Ok(())
}

/// Flows and what they move, bytes per second up and down; those that move most first.
struct RateTable<'f>(Vec<(&'f FlowRow, [f64; 2])>);

impl<'f> RateTable<'f> {
    fn from_samples(
        FlowList(previous): &FlowList,
        current: &'f [FlowRow],
        elapsed: Duration,
    ) -> Self {
        let key = |flow: &FlowRow| -> (SocketAddr, SocketAddr) { (flow.client, flow.backend) };
        let previous: HashMap<_, _> =
            previous.iter().map(|it| (key(it), [it.up, it.down])).collect();
        let rates = |flow: &FlowRow| {
            // One that came in between began at nothing.
            let [up, down] = previous.get(&key(flow)).copied().unwrap_or_default();
            // An engine that hands a flow on leaves its count to the next one.
            let moved = [flow.up.saturating_sub(up), flow.down.saturating_sub(down)];
            moved.map(|bytes| bytes as f64 / elapsed.as_secs_f64())
        };
        let mut all: Vec<_> = current.iter().map(|flow| (flow, rates(flow))).collect();
        all.sort_by(|(_, one), (_, other)| (other[0] + other[1]).total_cmp(&(one[0] + one[1])));
        Self(all)
    }
}

struct TopView<'t> {
    table: &'t RateTable<'t>,
    rows: usize,
}

impl fmt::Display for TopView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RateTable(flows) = self.table;
        let sum =
            |direction: usize| megabits(flows.iter().map(|(_, rates)| rates[direction]).sum());
        writeln!(f, "{} flows, Mbit/s: {:.1} up, {:.1} down", flows.len(), sum(0), sum(1))?;
        let titles = ["Mbit/s up", "down", "MB up", "down", "age s"];
        titles.iter().try_for_each(|title| write!(f, "{title:>11}"))?;
        writeln!(f, "  {:<8} flow", "engine")?;
        for (flow, [up, down]) in flows.iter().take(self.rows) {
            let FlowRow { engine, client, backend, route, .. } = flow;
            write!(f, "{:>11.1}{:>11.1}", megabits(*up), megabits(*down))?;
            write!(
                f,
                "{:>11.1}{:>11.1}{:>11}",
                megabytes(flow.up),
                megabytes(flow.down),
                flow.age
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
