//! Chart of the rates: a group of bars for each load, a bar for each candidate.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde_json::Value;

use super::values::{candidates, rows};

const WIDTH: u32 = 940;
/// Heights of a bar, of the space between groups, and of the legend, in pixels.
const BAR: i32 = 11;
const GAP: i32 = 16;
const LEGEND: i32 = 64;
/// Left end of the bars, and length of a ratio of 1, in pixels.
const LEFT: i32 = 250;
const UNIT: f64 = 130.0;
/// Longest ratio that is drawn; longer bars are cut and have an ellipsis.
const LONGEST: f64 = 5.0;

pub(super) fn draw(measured: &Value, path: &Path) -> Result<()> {
    let (rows, names) = (rows(measured, "rate"), candidates(measured));
    let group = BAR * names.len() as i32 + GAP;
    let height = LEGEND + group * rows.len() as i32;
    let area = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("the chart: {error}");
    area.fill(&WHITE).map_err(failed)?;
    let text = |words: String, at, size| {
        Text::new(words, at, ("sans-serif", size).into_font().color(&BLACK))
    };
    for (index, name) in names.iter().enumerate() {
        let at = (10 + (index % 5) as i32 * 175, 8 + (index / 5) as i32 * 18);
        let square = Rectangle::new([at, (at.0 + 10, at.1 + 10)], colour(index).filled());
        area.draw(&square).map_err(failed)?;
        area.draw(&text(name.clone(), (at.0 + 15, at.1 - 1), 13)).map_err(failed)?;
    }
    for (number, row) in rows.iter().enumerate() {
        let top = LEGEND + group * number as i32;
        let middle = top + BAR * names.len() as i32 / 2 - 7;
        area.draw(&text(row.load.clone(), (10, middle), 13)).map_err(failed)?;
        for (index, name) in names.iter().enumerate() {
            let Some((_, ratio)) =
                row.median_and_ratio(name).filter(|(_, ratio)| ratio.is_finite())
            else {
                continue;
            };
            let y = top + BAR * index as i32;
            let end = LEFT + (ratio.min(LONGEST) * UNIT) as i32;
            let bar = Rectangle::new([(LEFT, y), (end, y + BAR - 2)], colour(index).filled());
            area.draw(&bar).map_err(failed)?;
            let cut = if ratio > LONGEST { "… " } else { "" };
            area.draw(&text(format!("{cut}{ratio:.2}"), (end + 3, y - 1), 10)).map_err(failed)?;
        }
    }
    // A line at ratio 1, the end of the reference's bars.
    let one = LEFT + UNIT as i32;
    let line = PathElement::new(vec![(one, LEGEND - 4), (one, height - GAP)], BLACK.mix(0.4));
    area.draw(&line).map_err(failed)?;
    area.present().map_err(failed)
}

fn colour(index: usize) -> RGBColor {
    const ALL: [RGBColor; 11] = [
        RGBColor(120, 120, 120),
        RGBColor(180, 180, 180),
        RGBColor(170, 205, 235),
        RGBColor(80, 150, 210),
        RGBColor(20, 90, 160),
        RGBColor(120, 60, 160),
        RGBColor(10, 40, 90),
        RGBColor(214, 96, 77),
        RGBColor(244, 165, 130),
        RGBColor(90, 174, 97),
        RGBColor(230, 190, 60),
    ];
    ALL[index % ALL.len()]
}
