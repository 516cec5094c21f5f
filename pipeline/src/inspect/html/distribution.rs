//! Charts side by side, and the chart of a distribution.

use super::super::Distribution;
use crate::html::chart::{Bar, Frame, upright};
use crate::html::number;

pub(super) fn charts(charts: impl IntoIterator<Item = String>) -> String {
    format!("<div class=\"charts\">\n{}</div>\n", charts.into_iter().collect::<String>())
}

pub(super) fn distribution(title: &str, x: &str, y: &str, d: &Distribution) -> String {
    let bars: Vec<Bar> = d.bins.iter().map(|bin| Bar::share(bin.name(), bin.count, d.count)).collect();
    let note = format!(
        "mean {:.1}, median {}, p90 {}, p99 {}, from {} to {}",
        d.mean,
        number(d.median),
        number(d.p90),
        number(d.p99),
        number(d.min),
        number(d.max)
    );
    upright(&Frame { title, note, x, y, wide: false }, &bars)
}
