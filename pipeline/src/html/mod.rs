//! HTML reports: each is one file that needs no script, no network and no other file.
//!
//! Charts are SVG inside the page, with the exact numbers as tooltips; colours follow the reader's light or dark
//! setting. Everything that comes from a table (ids, titles, attribute values, rejected bytes) is escaped.

pub mod chart;
pub mod lines;
pub mod page;

use std::fmt;

use terminal::shown::steers;

/// Text from outside, made harmless inside elements and quoted attributes.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            '\n' | '\t' => f.write_char(' '),
            // Control characters are not allowed in HTML text, and bidirectional ones take effect unseen.
            c if steers(c) => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

/// A whole number with separators, such as `100,836`.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A whole number in at most four characters, such as `12k`, for axes.
pub fn short(n: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match units.iter().find(|(unit, _)| n >= *unit) {
        Some((unit, name)) if n.is_multiple_of(*unit) => format!("{}{name}", n / unit),
        Some((unit, name)) => format!("{:.1}{name}", n as f64 / *unit as f64),
        None => n.to_string(),
    }
}

/// `part` of `whole` in per cent.
pub fn percent(part: u64, whole: u64) -> String {
    format!("{:.1}%", 100.0 * part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_harmless() {
        let text = Escaped("<script>alert(\"x\" & 'y')</script>\u{0}").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&quot;x&quot; &amp; &#39;y&#39;)&lt;/script&gt;\\u{0}");
        assert_eq!(Escaped("a\u{202e}b\u{1b}[2J\n").to_string(), "a\\u{202e}b\\u{1b}[2J ");
        assert_eq!([number(0), number(999), number(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([short(999), short(1_500), short(20_000), short(3_000_000)], ["999", "1.5k", "20k", "3M"]);
        assert_eq!(percent(1, 3), "33.3%");
    }
}
