//! A curve on two logarithmic axes, as SVG.

use std::fmt::Write as _;

use crate::html::chart::Frame;
use crate::html::{Escaped, number, short};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 246.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 208.0;

/// Draws a curve through `points`, whose coordinates are at least 1; `names` of both coordinates are for the tooltips.
pub(super) fn log_log(frame: &Frame<'_>, names: [&str; 2], points: &[(u64, u64)]) -> String {
    let decades = |largest: u64| largest.max(2).ilog10() + u32::from(!is_power_of_ten(largest.max(2)));
    let (x_decades, y_decades) = (
        decades(points.iter().map(|p| p.0).max().unwrap_or(1)),
        decades(points.iter().map(|p| p.1).max().unwrap_or(1)),
    );
    let x = |n: u64| LEFT + (WIDTH - LEFT - RIGHT) * (n.max(1) as f64).log10() / f64::from(x_decades);
    let y = |n: u64| BOTTOM - (BOTTOM - TOP) * (n.max(1) as f64).log10() / f64::from(y_decades);
    let right = WIDTH - RIGHT;
    let mut svg = String::new();
    for (decade, tick) in (0..=y_decades).map(|d| (d, 10u64.saturating_pow(d))) {
        let class = if decade == 0 { "base" } else { "grid" };
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>\
             <text x=\"{1:.1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
            y(tick),
            LEFT - 6.0,
            y(tick) + 4.0,
            short(tick)
        );
    }
    for (decade, tick) in (0..=x_decades).map(|d| (d, 10u64.saturating_pow(d))) {
        let class = if decade == 0 { "base" } else { "grid" };
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>\
             <text x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"middle\">{2}</text>",
            x(tick),
            BOTTOM + 16.0,
            short(tick)
        );
    }
    let curve: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
    let _ = write!(svg, "<polyline class=\"curve\" points=\"{}\"/>", curve.join(" "));
    for &(a, b) in points {
        let _ = write!(
            svg,
            "<g><title>{} {}: {} {}</title><circle class=\"hit\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"9\"/>\
             <circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"/></g>",
            Escaped(names[0]),
            number(a),
            number(b),
            Escaped(names[1]),
            x(a),
            y(b),
            x(a),
            y(b)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text x=\"0\" y=\"11\">{}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 5.0,
        Escaped(frame.x),
        Escaped(frame.y)
    );
    frame.figure(WIDTH, HEIGHT, &svg)
}

fn is_power_of_ten(n: u64) -> bool {
    10u64.checked_pow(n.ilog10()) == Some(n)
}
