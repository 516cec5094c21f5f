//! The comparison as one SVG image: learning curves and, if present, horizon curves with the paired differences to the first
//! group below. The image follows the reader's light or dark setting and contains no script.

use std::fmt::Write as _;

use super::{Comparison, HorizonCurve, Interval, LearningCurve};
use crate::judge::{HR_10, Protocol};
use crate::records::Validation;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 62.0;
const PLOT_HEIGHT: f64 = 250.0;
/// Height below the axis of a panel: labels, and the gap to the next panel.
const BELOW: f64 = 62.0;
/// Height of a one-line label.
const LABEL_HEIGHT: f64 = 15.0;
/// Number of line colours; further lines repeat them dashed.
const COLOURS: usize = 8;

/// One line of a panel.
#[derive(Debug, Clone, Default)]
struct Series {
    label: String,
    points: Vec<(f64, f64)>,
    /// Lower and upper bound at each point.
    band: Vec<(f64, f64)>,
    /// Lines that the points average, if more than one.
    parts: Vec<Vec<(f64, f64)>>,
    /// The best point, marked with a dot; `None` marks all points.
    selected: Option<(f64, f64)>,
    colour: usize,
}

#[derive(Debug)]
struct Panel {
    title: String,
    note: String,
    x: &'static str,
    series: Vec<Series>,
    /// Whether the lines are differences: the axis includes 0, and ticks have signs.
    signed: bool,
}

/// Returns the image; `None` if no run has validation records and there is no horizon curve.
pub fn svg(comparison: &Comparison) -> Option<String> {
    let panels: Vec<Panel> = learning(comparison).into_iter().chain(horizon(comparison)).collect();
    if panels.is_empty() {
        return None;
    }
    let height = panels.len() as f64 * (TOP + PLOT_HEIGHT + BELOW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>Comparison of runs</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        let down = i as f64 * (TOP + PLOT_HEIGHT + BELOW);
        let _ = writeln!(svg, "<g transform=\"translate(0 {down})\">{}</g>", panel.draw());
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// Returns the distinct labels, in the order of the groups.
fn labels<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut known = Vec::new();
    for label in labels {
        if !known.contains(&label) {
            known.push(label);
        }
    }
    known
}

/// Returns the colour of a group, the same in every panel.
fn colour(comparison: &Comparison, label: &str) -> usize {
    labels(comparison.results.iter().map(|r| r.label.as_str())).iter().position(|l| *l == label).unwrap_or(0)
}

/// Returns the learning curves, validation HR@10 by epoch: one panel per protocol used in validation.
fn learning(comparison: &Comparison) -> Vec<Panel> {
    Protocol::ALL.iter().filter_map(|&protocol| learning_panel(comparison, protocol)).collect()
}

fn learning_panel(comparison: &Comparison, protocol: Protocol) -> Option<Panel> {
    let course = |curve: &LearningCurve| -> Vec<(f64, f64)> {
        let point = |epoch: usize, v: &Validation| Some((epoch as f64, v.means[HR_10]?));
        let validated = curve.epochs.iter().filter_map(|e| Some((e.epoch, e.validation.as_ref()?)));
        validated.filter(|(_, v)| v.protocol == protocol).filter_map(|(epoch, v)| point(epoch, v)).collect()
    };
    let mut series = Vec::new();
    let mut seeds = false;
    for label in labels(comparison.learning.iter().map(|c| c.label.as_str())) {
        let runs = comparison.learning.iter().filter(|c| c.label == label);
        let parts: Vec<Vec<(f64, f64)>> = runs.map(course).filter(|points| !points.is_empty()).collect();
        let points = mean(&parts);
        let Some(&first) = points.first() else { continue };
        let best = |best: (f64, f64), point: &(f64, f64)| if point.1 > best.1 { *point } else { best };
        let selected = Some(points.iter().fold(first, best));
        seeds |= parts.len() > 1;
        series.push(Series {
            label: label.into(),
            points,
            selected,
            colour: colour(comparison, label),
            parts: if parts.len() > 1 { parts } else { Vec::new() },
            ..Series::default()
        });
    }
    let thin = if seeds { "; thin lines: single seeds, as far as all go: their mean" } else { "" };
    (!series.is_empty()).then(|| Panel {
        title: "Learning curves: validation HR@10".into(),
        note: format!("{}, seen items filtered; dots: the best epoch{thin}", protocol.name()),
        x: "epoch",
        series,
        signed: false,
    })
}

/// Returns the mean of several lines at the `x` that all of them have.
fn mean(parts: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let Some((first, others)) = parts.split_first() else { return Vec::new() };
    let at = |x: f64, points: &[(f64, f64)]| points.iter().find(|p| p.0 == x).map(|p| p.1);
    first
        .iter()
        .filter_map(|&(x, y)| {
            let rest = others.iter().map(|points| at(x, points)).collect::<Option<Vec<f64>>>()?;
            Some((x, (y + rest.iter().sum::<f64>()) / parts.len() as f64))
        })
        .collect()
}

/// Returns HR@10 by horizon (Figure 3) and its differences to the first group: two panels per protocol.
fn horizon(comparison: &Comparison) -> Vec<Panel> {
    let panels = |&protocol: &Protocol| {
        let of_protocol = |c: &&HorizonCurve| c.filter_seen && c.protocol == protocol;
        let curves: Vec<&HorizonCurve> = comparison.horizon.iter().filter(of_protocol).collect();
        let Some(first) = curves.first() else { return Vec::new() };
        let series = |curve: &HorizonCurve, rates: &[Interval]| Series {
            label: curve.label.clone(),
            points: (1u8..).zip(rates).map(|(h, rate)| (f64::from(h), rate.value)).collect(),
            band: rates.iter().map(|rate| (rate.low, rate.high)).collect(),
            colour: colour(comparison, &curve.label),
            ..Series::default()
        };
        let about = format!(
            "{}, {}, seen items filtered; {} users; bands: 95 % interval of the",
            comparison.split,
            protocol.name(),
            first.users
        );
        let x = "events ahead of the anchor";
        let rates = Panel {
            title: "Horizon curve: HR@10 of one prediction for the events that follow".into(),
            note: format!("{about} bootstrap over users"),
            x,
            series: curves.iter().map(|curve| series(curve, &curve.rates.hr_10)).collect(),
            signed: false,
        };
        let differences = Panel {
            title: format!("Horizon curve: difference of HR@10 to `{}`", first.label),
            note: format!("{about} paired bootstrap over users"),
            x,
            series: curves.iter().filter_map(|c| Some(series(c, &c.difference.as_ref()?.hr_10))).collect(),
            signed: true,
        };
        [rates, differences].into_iter().filter(|panel| !panel.series.is_empty()).collect()
    };
    Protocol::ALL.iter().flat_map(panels).collect()
}

impl Panel {
    /// Returns the content of the panel, with its upper left corner at the origin.
    fn draw(&self) -> String {
        let longest = self.series.iter().map(|s| s.label.chars().count()).max().unwrap_or(0).min(24) as f64;
        let right = WIDTH - (longest * 7.0 + 24.0);
        let bottom = TOP + PLOT_HEIGHT;
        let xs =
            self.series.iter().flat_map(|s| s.points.iter().chain(s.parts.iter().flatten()).map(|p| p.0));
        let ys = self.series.iter().flat_map(|s| {
            let points = s.points.iter().chain(s.parts.iter().flatten()).map(|p| p.1);
            points.chain(s.band.iter().flat_map(|b| [b.0, b.1]))
        });
        let (x_low, x_high) = range(xs);
        let (y_low, y_high) = range(ys);
        let (y_low, y_high) = shown(y_low, y_high, self.signed);
        let y_ticks = ticks(y_low, y_high, 5.0, 0.0);
        let (y_low, y_high) = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
        let x_ticks: Vec<f64> = ticks(x_low, x_high, 9.0, 1.0);
        let x_ticks: Vec<f64> = x_ticks.into_iter().filter(|t| (x_low..=x_high).contains(t)).collect();
        let x = |value: f64| LEFT + (right - LEFT) * fraction(value, x_low, x_high);
        let y = |value: f64| bottom - PLOT_HEIGHT * fraction(value, y_low, y_high);

        let mut svg = format!(
            "<text class=\"title\" x=\"16\" y=\"26\">{}</text><text x=\"16\" y=\"44\">{}</text>",
            escaped(&self.title),
            escaped(&self.note)
        );
        let decimals = decimals(&y_ticks);
        for (i, &tick) in y_ticks.iter().enumerate() {
            let class = if i == 0 || (self.signed && tick == 0.0) { "base" } else { "grid" };
            let plus = if self.signed && tick > 0.0 { "+" } else { "" };
            let _ = write!(
                svg,
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>\
                 <text x=\"{1:.1}\" y=\"{2:.1}\" text-anchor=\"end\">{plus}{tick:.decimals$}</text>",
                y(tick),
                LEFT - 8.0,
                y(tick) + 4.0
            );
        }
        for &tick in &x_ticks {
            let _ = write!(
                svg,
                "<line class=\"base\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{bottom}\" y2=\"{1}\"/>\
                 <text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{tick}</text>",
                x(tick),
                bottom + 4.0,
                bottom + 18.0
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            bottom + 36.0,
            self.x
        );
        let path = |points: &[(f64, f64)]| {
            let points: Vec<String> =
                points.iter().map(|&(px, py)| format!("{:.1},{:.1}", x(px), y(py))).collect();
            points.join(" ")
        };
        for s in &self.series {
            let colour = s.colour % COLOURS;
            let dashed = if s.colour >= COLOURS { " dashed" } else { "" };
            if !s.band.is_empty() {
                let edge = |side: fn(&(f64, f64)) -> f64| -> Vec<(f64, f64)> {
                    s.points.iter().zip(&s.band).map(|(point, band)| (point.0, side(band))).collect()
                };
                let (low, mut high) = (edge(|b| b.0), edge(|b| b.1));
                high.reverse();
                let _ = write!(
                    svg,
                    "<polygon class=\"band c{colour}\" points=\"{}\"/>",
                    path(&[low, high].concat())
                );
            }
            for part in &s.parts {
                let _ = write!(svg, "<polyline class=\"thin c{colour}\" points=\"{}\"/>", path(part));
            }
            let _ =
                write!(svg, "<polyline class=\"line c{colour}{dashed}\" points=\"{}\"/>", path(&s.points));
            let dots: Vec<(f64, f64)> = match s.selected {
                Some(point) => vec![point],
                None => s.points.clone(),
            };
            for (px, py) in dots {
                let _ = write!(
                    svg,
                    "<g><title>{}: {} {px}, {py:.4}</title><circle class=\"dot c{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" \
                     r=\"3.5\"/></g>",
                    escaped(&s.label),
                    self.x,
                    x(px),
                    y(py)
                );
            }
        }
        // Lines are labelled at their end; overlapping labels move apart.
        let ends: Vec<(f64, f64)> =
            self.series.iter().map(|s| *s.points.last().unwrap_or(&(x_high, y_low))).collect();
        let at = apart(&ends.iter().map(|&(_, end)| y(end)).collect::<Vec<_>>(), TOP, bottom);
        for ((s, &(end_x, end_y)), &label_y) in self.series.iter().zip(&ends).zip(&at) {
            let colour = s.colour % COLOURS;
            let mut label: String = s.label.chars().take(24).collect();
            if label.len() < s.label.len() {
                label.pop();
                label.push('…');
            }
            let _ = write!(
                svg,
                "<line class=\"leader c{colour}\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{label_y:.1}\"/>\
                 <text class=\"label c{colour}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x(end_x) + 5.0,
                right + 9.0,
                y(end_y),
                right + 12.0,
                label_y + 4.0,
                escaped(&label)
            );
        }
        svg
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// Returns the range that a panel shows for values from `low` to `high`. To show differences between lines, 0 is included only if
/// near; for lines that are differences themselves, 0 is always included.
fn shown(low: f64, high: f64, signed: bool) -> (f64, f64) {
    match signed {
        true => (low.min(0.0), high.max(0.0)),
        false if low < 0.4 * high => (0.0, high),
        false => (low, high),
    }
}

/// Returns the position of `value` between `low` and `high`, from 0 to 1; 0.5 if they are equal.
fn fraction(value: f64, low: f64, high: f64) -> f64 {
    if high > low { (value - low) / (high - low) } else { 0.5 }
}

/// Returns round numbers from at most `low` to at least `high`, in about `count` steps of at least `least`.
fn ticks(low: f64, high: f64, count: f64, least: f64) -> Vec<f64> {
    let rough = ((high - low) / count).max(least).max(1e-6);
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|&s| s >= rough * (1.0 - 1e-9));
    let step = step.unwrap_or(rough);
    // Divides by a whole number for steps below 1, which avoids 0.30000000000000004.
    let value = |n: i64| if step < 1.0 { n as f64 / (1.0 / step).round() } else { n as f64 * step };
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last.max(first + 1)).map(value).collect()
}

/// Returns the number of decimals that distinguishes all ticks.
fn decimals(ticks: &[f64]) -> usize {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    (0..6).find(|&d| step * 10f64.powi(d) > 1.0 - 1e-6).unwrap_or(6) as usize
}

/// Moves labels from their `wanted` heights to at least [`LABEL_HEIGHT`] apart, in order, between `top` and `bottom`.
fn apart(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut at = wanted.to_vec();
    let mut next = top;
    for &i in &order {
        at[i] = at[i].max(next);
        next = at[i] + LABEL_HEIGHT;
    }
    let mut next = bottom;
    for &i in order.iter().rev() {
        at[i] = at[i].min(next);
        next = at[i] - LABEL_HEIGHT;
    }
    at
}

fn escaped(text: &str) -> String {
    let text = terminal::shown::Shown(text).to_string();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
svg { color-scheme: light dark; --page: #ffffff; --line: #e3e3dd; --ink: #1d1d1b; --soft: #6a6a64;
  --c0: #2a6fc4; --c1: #c8501e; --c2: #23824f; --c3: #8a4fb5; --c4: #9a6f00; --c5: #c23a78; --c6: #2f7f8f; --c7: #6a6a64; }
@media (prefers-color-scheme: dark) { svg { --page: #201f1d; --line: #393834; --ink: #eeede8; --soft: #a5a39b;
  --c0: #5c9fe8; --c1: #f08a55; --c2: #55c08a; --c3: #bd93ec; --c4: #dcb64c; --c5: #f083b4; --c6: #78c3d2; --c7: #b0aea6; } }
.page { fill: var(--page); }
text { fill: var(--soft); font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif;
  font-variant-numeric: tabular-nums; }
.title { fill: var(--ink); font-size: 15px; font-weight: 600; }
.label { fill: var(--c); font-weight: 600; }
.grid { stroke: var(--line); } .base { stroke: var(--soft); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.thin { fill: none; stroke: var(--c); stroke-width: 1; stroke-opacity: .4; stroke-linejoin: round; }
.dashed { stroke-dasharray: 6 4; }
.band { fill: var(--c); fill-opacity: .14; }
.leader { stroke: var(--c); stroke-opacity: .4; }
.dot { fill: var(--c); stroke: var(--page); stroke-width: 1.5; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_both_ends() {
        assert_eq!(ticks(0.0, 0.094, 5.0, 0.0), [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]);
        assert_eq!(ticks(0.081, 0.096, 5.0, 0.0), [0.08, 0.085, 0.09, 0.095, 0.1]);
        assert_eq!(ticks(1.0, 10.0, 9.0, 1.0), (1..=10).map(f64::from).collect::<Vec<_>>());
        assert_eq!(ticks(1.0, 130.0, 9.0, 1.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0, 140.0]);
        let flat = ticks(0.5, 0.5, 5.0, 0.0);
        assert!(flat[0] <= 0.5 && flat[flat.len() - 1] >= 0.5 && flat.len() < 4, "{flat:?}");
        assert_eq!([decimals(&[0.0, 0.02]), decimals(&[0.08, 0.085]), decimals(&[0.0, 5.0])], [2, 3, 0]);
    }

    #[test]
    fn differences_show_zero_and_other_lines_only_where_it_is_near() {
        assert_eq!(shown(0.081, 0.096, false), (0.081, 0.096));
        assert_eq!(shown(0.03, 0.096, false), (0.0, 0.096));
        assert_eq!(shown(0.004, 0.012, true), (0.0, 0.012));
        assert_eq!(shown(-0.012, -0.004, true), (-0.012, 0.0));
        let around = shown(-0.004, 0.012, true);
        assert_eq!(ticks(around.0, around.1, 4.0, 0.0), [-0.005, 0.0, 0.005, 0.01, 0.015]);
    }

    #[test]
    fn labels_do_not_overlap_and_stay_inside() {
        let wanted = [100.0, 101.0, 99.0, 300.0, 310.0];
        let at = apart(&wanted, 62.0, 312.0);
        let mut sorted = at.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= LABEL_HEIGHT - 1e-9), "{at:?}");
        assert!(sorted[0] >= 62.0 && sorted[4] <= 312.0, "{at:?}");
        assert!(at[2] < at[0] && at[0] < at[1], "in the order of the lines");
    }

    #[test]
    fn a_mean_covers_what_all_seeds_have() {
        let parts = [vec![(1.0, 0.2), (2.0, 0.4), (3.0, 0.5)], vec![(1.0, 0.4), (2.0, 0.6)]];
        let found = mean(&parts);
        assert_eq!(found.iter().map(|p| p.0).collect::<Vec<_>>(), [1.0, 2.0]);
        assert!((found[0].1 - 0.3).abs() < 1e-12 && (found[1].1 - 0.5).abs() < 1e-12);
    }
}
