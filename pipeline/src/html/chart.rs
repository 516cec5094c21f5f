//! Bar charts: vertical for distributions and time, horizontal for named values.

use std::fmt::Write as _;

use super::{Escaped, number, percent, short};

const WIDTH: f64 = 520.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 28.0;
const PLOT_HEIGHT: f64 = 180.0;

/// Title, note and axis names of a chart.
pub struct Frame<'a> {
    /// Title above the chart.
    pub title: &'a str,
    /// A line below the title.
    pub note: String,
    /// Name of the horizontal axis, with its unit.
    pub x: &'a str,
    /// Name of the vertical axis, with its unit.
    pub y: &'a str,
    /// Whether the chart takes the whole width of the page.
    pub wide: bool,
}

/// One bar.
pub struct Bar {
    /// Its name on the axis; empty for none.
    pub label: String,
    /// Its name in the tooltip.
    pub name: String,
    /// Its length.
    pub height: f64,
    /// The exact number, for the tooltip or the end of the bar.
    pub value: String,
}

impl Bar {
    /// A bar for `count`, with its share of `total`.
    pub fn share(name: impl Into<String>, count: u64, total: u64) -> Self {
        let name = name.into();
        let value = format!("{} ({})", number(count), percent(count, total));
        Self { label: name.clone(), name, height: count as f64, value }
    }
}

impl Frame<'_> {
    /// The names of both axes: the horizontal one's centred at `x` and `y`, the vertical one's above the axis.
    pub(super) fn axes(&self, x: f64, y: f64) -> String {
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text><text x=\"0\" y=\"11\">{}</text>",
            Escaped(self.x),
            Escaped(self.y)
        )
    }

    /// The chart as a figure; `svg` is its inside, `width` by `height`.
    pub fn figure(&self, width: f64, height: f64, svg: &str) -> String {
        format!(
            "<figure{}><figcaption><h3>{title}</h3><p>{}</p></figcaption>\n\
             <svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">{svg}</svg></figure>\n",
            if self.wide { " class=\"wide\"" } else { "" },
            Escaped(&self.note),
            title = Escaped(self.title),
        )
    }
}

/// Round numbers from 0 to at least `most`, about four of them.
fn ticks(most: f64) -> Vec<u64> {
    let most = most.ceil() as u64;
    let rough = most.div_ceil(4).max(1);
    let decade = 10u64.pow(rough.ilog10());
    let step = [1, 2, 5, 10].map(|n| n * decade).into_iter().find(|&step| step >= rough).unwrap_or(rough);
    (0..=most.div_ceil(step).max(1)).map(|n| n * step).collect()
}

/// A chart of vertical bars.
pub fn upright(frame: &Frame<'_>, bars: &[Bar]) -> String {
    let width = if frame.wide { 2.0 * WIDTH + 50.0 } else { WIDTH };
    let slot = (width - LEFT - RIGHT) / bars.len().max(1) as f64;
    let longest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0) as f64;
    // Time axes have labels at some bars only; these may extend over neighbouring bars.
    let sparse = bars.iter().any(|bar| bar.label.is_empty());
    let slanted = !sparse && longest * 6.2 > slot - 4.0;
    let below = if slanted { (longest * 4.4).max(16.0) + 8.0 } else { 18.0 };
    let (bottom, height) = (TOP + PLOT_HEIGHT, TOP + PLOT_HEIGHT + below + 20.0);
    let ticks = ticks(bars.iter().map(|bar| bar.height).fold(0.0, f64::max));
    let top = ticks.last().copied().unwrap_or(1) as f64;
    let y = |height: f64| bottom - PLOT_HEIGHT * height / top;

    let mut svg = String::new();
    for &tick in &ticks {
        let class = if tick == 0 { "base" } else { "grid" };
        let (y, right) = (y(tick as f64), width - RIGHT);
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(tick)
        );
    }
    let thick = (slot * 0.78).max(slot - 6.0).min(56.0);
    for (i, bar) in bars.iter().enumerate() {
        let x = LEFT + slot * i as f64;
        // A value above zero gets a visible bar.
        let high = if bar.height > 0.0 { (bottom - y(bar.height)).max(1.0) } else { 0.0 };
        let _ = write!(
            svg,
            "<g><title>{}: {}</title>\
             <rect class=\"hit\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{slot:.1}\" height=\"{PLOT_HEIGHT}\"/>\
             <rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{thick:.1}\" height=\"{high:.1}\" rx=\"{:.1}\"/></g>",
            Escaped(&bar.name),
            Escaped(&bar.value),
            x + (slot - thick) / 2.0,
            bottom - high,
            (thick / 6.0).min(2.0)
        );
        if !bar.label.is_empty() {
            let (x, y) = (x + slot / 2.0, bottom + 15.0);
            let place = match slanted {
                true => format!(
                    "x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" transform=\"rotate(-40 {:.1} {:.1})\"",
                    x + 4.0,
                    y - 3.0,
                    x + 4.0,
                    y - 3.0
                ),
                false => format!("x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\""),
            };
            let _ = write!(svg, "<text {place}>{}</text>", Escaped(&bar.label));
        }
    }
    svg.push_str(&frame.axes((LEFT + width - RIGHT) / 2.0, height - 5.0));
    frame.figure(width, height, &svg)
}

/// A chart of horizontal bars, with names on the left and counts on the right.
pub fn lying(frame: &Frame<'_>, bars: &[Bar]) -> String {
    const STEP: f64 = 24.0;
    let most = bars.iter().map(|bar| bar.height).fold(1.0, f64::max);
    let longest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0).min(28) as f64;
    let left = (longest * 6.4 + 10.0).max(60.0);
    let room = WIDTH - left - 118.0;
    let height = STEP * bars.len() as f64 + 22.0;
    let mut svg = String::new();
    for (i, bar) in bars.iter().enumerate() {
        let y = STEP * i as f64 + 2.0;
        let long = if bar.height > 0.0 { (room * bar.height / most).max(1.0) } else { 0.0 };
        let mut label: String = bar.label.chars().take(28).collect();
        if label.len() < bar.label.len() {
            label.pop();
            label.push('…');
        }
        let _ = write!(
            svg,
            "<g><title>{}: {}</title>\
             <rect class=\"hit\" x=\"0\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{STEP}\"/>\
             <text class=\"strong\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"bar\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{long:.1}\" height=\"{:.1}\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            Escaped(&bar.name),
            Escaped(&bar.value),
            left - 8.0,
            y + 16.0,
            Escaped(&label),
            y + 4.0,
            STEP - 8.0,
            left + long + 6.0,
            y + 16.0,
            Escaped(&bar.value)
        );
    }
    let _ = write!(svg, "<text x=\"{left:.1}\" y=\"{:.1}\">{}</text>", height - 6.0, Escaped(frame.x));
    frame.figure(WIDTH, height, &svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(0.0), [0, 1]);
        assert_eq!(ticks(2.5), [0, 1, 2, 3]);
        assert_eq!(ticks(97.0), [0, 50, 100]);
        assert_eq!(ticks(61_000.0), [0, 20_000, 40_000, 60_000, 80_000]);
        assert!(ticks(u32::MAX.into()).last() >= Some(&u32::MAX.into()));
    }
}
