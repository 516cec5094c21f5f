//! Line charts.

use std::fmt::Write as _;

use pipeline::html::Escaped;
use pipeline::html::chart::Frame;

const WIDTH: f64 = 520.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 28.0;
const HEIGHT: f64 = 180.0;
/// Labels on the lying axis, at most.
const LABELS: usize = 8;

/// One line; where a place has no value it is broken.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    /// By place on the lying axis.
    pub(super) values: Vec<Option<f64>>,
}

/// Lines over named places, the axis from 0; `show` prints a value. Nothing where no line has a value.
pub(super) fn lines(
    frame: &Frame<'_>,
    places: &[String],
    lines: &[Line<'_>],
    show: impl Fn(f64) -> String,
) -> String {
    let all = || lines.iter().flat_map(|line| line.values.iter().copied().flatten());
    let Some(most) = all().reduce(f64::max) else { return String::new() };
    let width = if frame.wide { 2.0 * WIDTH + 50.0 } else { WIDTH };
    let bottom = TOP + HEIGHT;
    let top = if most > 0.0 { most * 1.08 } else { 1.0 };
    let x = |place: usize| LEFT + (width - LEFT - RIGHT) * (place as f64 + 0.5) / places.len().max(1) as f64;
    let y = |value: f64| bottom - HEIGHT * value / top;
    let mut svg = String::new();
    for (i, tick) in (0..=4).map(|n| top * f64::from(n) / 4.0).enumerate() {
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
            match value {
                Some(value) => {
                    let _ =
                        write!(path, "{}{:.1} {:.1}", if broken { "M" } else { "L" }, x(place), y(*value));
                    broken = false;
                }
                None => broken = true,
            }
        }
        let _ = write!(svg, "<path class=\"curve line{n}\" d=\"{path}\"/>");
        for (place, value) in line.values.iter().enumerate() {
            if let (Some(value), Some(name)) = (value, places.get(place)) {
                let _ = write!(
                    svg,
                    "<g><title>{}, {}: {}</title><circle class=\"dot line{n}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/></g>",
                    Escaped(line.name),
                    Escaped(name),
                    Escaped(&show(*value)),
                    x(place),
                    y(*value)
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
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text x=\"0\" y=\"11\">{}</text>",
        (LEFT + width - RIGHT) / 2.0,
        height - 5.0,
        Escaped(frame.x),
        Escaped(frame.y)
    );
    frame.figure(width, height, &svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_broken_where_nothing_is_known() {
        let frame = Frame { title: "t", note: String::new(), x: "day", y: "HR", wide: false };
        let places: Vec<String> = (1..=4).map(|day| day.to_string()).collect();
        let line = Line { name: "a<b", values: vec![Some(0.1), Some(0.2), None, Some(0.3)] };
        let svg = lines(&frame, &places, &[line], |value| format!("{value:.2}"));
        let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"), "{svg}");
        let nothing = Line { name: "n", values: vec![None; 4] };
        assert!(lines(&frame, &places, &[nothing], |v| v.to_string()).is_empty());
    }
}
