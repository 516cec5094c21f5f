//! Line charts.

use std::fmt::Write as _;

use super::Escaped;
use super::chart::Frame;

const WIDTH: f64 = 520.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 28.0;
const HEIGHT: f64 = 180.0;
/// Maximum labels on the horizontal axis.
const LABELS: usize = 8;

/// One line; it is interrupted at positions without a value.
pub struct Line<'a> {
    /// Its name.
    pub name: &'a str,
    /// Values by position on the horizontal axis.
    pub values: Vec<Option<f64>>,
}

/// About four round numbers from at most `least` to at least `most`.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    // Equal values span nothing, so use a minimum step.
    let smallest = least.abs().max(most.abs()).max(1e-6) * 1e-3;
    let rough = ((most - least) / 4.0).max(smallest);
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|n| n * decade).into_iter().find(|&step| step >= rough);
    let step = step.unwrap_or(rough);
    let (first, last) = ((least / step).floor() as i64, (most / step).ceil() as i64);
    (first..=last.max(first + 1)).map(|n| n as f64 * step).collect()
}

/// A chart of lines over named positions; `show` formats a value. With `from_zero`, the axis begins at 0, otherwise near the
/// smallest value. Empty if no line has a value.
pub fn lines(
    frame: &Frame<'_>,
    places: &[String],
    lines: &[Line<'_>],
    from_zero: bool,
    show: impl Fn(f64) -> String,
) -> String {
    let all =
        || lines.iter().flat_map(|line| line.values.iter().copied().flatten()).filter(|v| v.is_finite());
    let Some(most) = all().reduce(f64::max) else { return String::new() };
    let width = if frame.wide { 2.0 * WIDTH + 50.0 } else { WIDTH };
    let bottom = TOP + HEIGHT;
    let least = if from_zero { 0.0 } else { all().fold(most, f64::min) };
    let ticks = ticks(least, most);
    let (low, top) = (ticks[0], ticks[ticks.len() - 1]);
    let x = |place: usize| LEFT + (width - LEFT - RIGHT) * (place as f64 + 0.5) / places.len().max(1) as f64;
    let y = |value: f64| bottom - HEIGHT * (value - low) / (top - low);
    let mut svg = String::new();
    for (i, &tick) in ticks.iter().enumerate() {
        let class = if i == 0 { "base" } else { "grid" };
        let (at, right) = (y(tick), width - RIGHT);
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            Escaped(&show(tick))
        );
    }
    let every = places.len().div_ceil(LABELS).max(1);
    for (i, place) in places.iter().enumerate().filter(|(i, _)| i % every == 0) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(i),
            bottom + 15.0,
            Escaped(place)
        );
    }
    for (n, line) in lines.iter().enumerate() {
        let mut path = String::new();
        let mut broken = true;
        for (place, value) in line.values.iter().enumerate() {
            match value.filter(|value| value.is_finite()) {
                Some(value) => {
                    let _ = write!(path, "{}{:.1} {:.1}", if broken { "M" } else { "L" }, x(place), y(value));
                    broken = false;
                }
                None => broken = true,
            }
        }
        let _ = write!(svg, "<path class=\"curve line{n}\" d=\"{path}\"/>");
        for (place, value) in line.values.iter().enumerate() {
            if let (Some(value), Some(name)) = (value.filter(|value| value.is_finite()), places.get(place)) {
                let _ = write!(
                    svg,
                    "<g><title>{}, {}: {}</title><circle class=\"dot line{n}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/></g>",
                    Escaped(line.name),
                    Escaped(name),
                    Escaped(&show(value)),
                    x(place),
                    y(value)
                );
            }
        }
    }
    // The names of the lines, in the colours of the lines.
    let mut left = LEFT + 80.0;
    for (n, line) in lines.iter().enumerate() {
        let _ = write!(
            svg,
            "<rect class=\"key line{n}\" x=\"{left:.1}\" y=\"4\" width=\"10\" height=\"10\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"13\">{}</text>",
            left + 15.0,
            Escaped(line.name)
        );
        left += 32.0 + 6.6 * line.name.chars().count() as f64;
    }
    let height = bottom + 40.0;
    svg.push_str(&frame.axes((LEFT + width - RIGHT) / 2.0, height - 5.0));
    frame.figure(width, height, &svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_everything() {
        assert_eq!(ticks(0.0, 0.177), [0.0, 0.05, 0.1, 0.15000000000000002, 0.2]);
        assert_eq!(ticks(10.7, 10.83).len(), 5);
        for (least, most) in
            [(0.0, 0.0), (0.0, 3.0), (3.2, 3.2), (1e12, 1e12), (10.7, 10.71), (-2.0, 7.0), (1e-9, 2e-9)]
        {
            let ticks = ticks(least, most);
            let near = 1e-9 * most.abs().max(1.0);
            let held = ticks[0] <= least + near && ticks[ticks.len() - 1] >= most - near;
            assert!(held && (2..=8).contains(&ticks.len()), "{ticks:?}");
        }
    }

    #[test]
    fn a_line_is_broken_where_nothing_is_known() {
        let frame = Frame { title: "t", note: String::new(), x: "day", y: "HR", wide: false };
        let places: Vec<String> = (1..=4).map(|day| day.to_string()).collect();
        let line = Line { name: "a<b", values: vec![Some(0.1), Some(0.2), None, Some(0.3)] };
        let svg = lines(&frame, &places, &[line], true, |value| format!("{value:.2}"));
        let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"), "{svg}");
        let wild = Line { name: "w", values: vec![Some(f64::NAN), Some(1.0), Some(f64::INFINITY), None] };
        let svg = lines(&frame, &places, &[wild], false, |value| format!("{value:.2}"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let nothing = Line { name: "n", values: vec![None; 4] };
        assert!(lines(&frame, &places, &[nothing], true, |v| v.to_string()).is_empty());
    }
}
