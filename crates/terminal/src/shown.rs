//! Escapes text from data, so that it cannot control a terminal or a page.
//!
//! Ids, titles and rejected records hold whatever was sent, such as escape sequences that rewrite a terminal or controls that
//! reverse the reading direction. Everything that a program prints for people goes through [`lines`] (the crates' `eprintln!` and
//! `println!` are the ones below), a single value inside a line through [`Shown`], and JSON on stdout through [`to_json`], which
//! changes only its spelling.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

/// Returns true for a character that controls its display instead of being displayed: controls (C0, DEL, C1), bidirectional
/// controls, line and paragraph separators, interlinear marks, tags.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A value inside a line: control characters are displayed as escapes such as `\u{1b}` and `\n`.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escaped(self.0, steers))
    }
}

/// Escapes control characters in whole lines, except line ends and tabs.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| steers(c) && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, steers: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&steers) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match steers(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Escapes control characters in a log's output, except its own colours (`ESC [ … m`), line ends and tabs. The log has already
/// escaped those in data.
pub fn coloured(text: &str) -> Cow<'_, str> {
    let mut left = text;
    let mut shown = String::new();
    while let Some(at) = left.find('\u{1b}') {
        let (before, sequence) = left.split_at(at);
        let parameters = sequence[1..].strip_prefix('[').unwrap_or_default();
        let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';');
        let colour = match end.filter(|&end| parameters[end..].starts_with('m')) {
            Some(end) => &sequence[..end + 3],
            None => "",
        };
        shown.push_str(&lines(before));
        shown.push_str(if colour.is_empty() { "\\u{1b}" } else { colour });
        left = &sequence[colour.len().max(1)..];
    }
    if shown.is_empty() { lines(left) } else { Cow::Owned(shown + &lines(left)) }
}

/// Replaces each control character in JSON by an escape such as `\u009b`; line ends between objects stay.
pub fn json_lines(text: &str) -> Cow<'_, str> {
    if text.is_ascii() && !text.contains('\u{7f}') {
        return Cow::Borrowed(text);
    }
    let mut units = [0; 2];
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match steers(c) && c != '\n' {
            true => c.encode_utf16(&mut units).iter().for_each(|unit| {
                let _ = write!(shown, "\\u{unit:04x}");
            }),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// [`serde_json::to_writer`] for stdout: control characters are escaped (`\u009b`), which leaves the same JSON value.
///
/// # Errors
///
/// Those of [`serde_json::to_writer`].
pub fn to_json(out: &mut impl io::Write, value: &impl Serialize) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, Steerless))
}

struct Steerless;

impl Formatter for Steerless {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        CompactFormatter.write_string_fragment(out, &json_lines(text))
    }
}

/// `eprintln!` of the programs: control characters in data are escaped, and a closed stderr is ignored.
#[macro_export]
macro_rules! eprintln {
    () => { $crate::print_error(::std::format_args!("\n")) };
    ($($arg:tt)*) => { $crate::print_error(::std::format_args!("{}\n", ::std::format_args!($($arg)*))) };
}

/// [`eprintln`] without the line end.
#[macro_export]
macro_rules! eprint {
    ($($arg:tt)*) => { $crate::print_error(::std::format_args!($($arg)*)) };
}

/// Returns `text`, escaped, padded or cut to exactly `width` characters.
pub fn fitted(text: &str, width: usize) -> String {
    let text = Shown(text).to_string();
    if text.chars().count() <= width {
        format!("{text:<width$}")
    } else {
        let cut: String = text.chars().take(width - 1).collect();
        format!("{cut}…")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NASTY: &str = "a\u{1b}[2J\u{9b}31m\u{202e}b\u{2066}\r\n\u{e0041}\u{7f}";

    #[test]
    fn texts_fit_their_place() {
        assert_eq!(fitted("ab\nc", 6), "ab\\nc ");
        assert_eq!(fitted("abcdef", 4), "abc…");
    }

    #[test]
    fn values_and_lines_cannot_steer() {
        let shown = Shown(NASTY).to_string();
        assert_eq!(shown, r"a\u{1b}[2J\u{9b}31m\u{202e}b\u{2066}\r\n\u{e0041}\u{7f}");
        assert_eq!(lines("a\tb\nc\u{1b}"), "a\tb\nc\\u{1b}");
        assert!(matches!(lines("Æneid, 源氏物語, پ‌ی, 👩‍🚀"), Cow::Borrowed(_)));
        assert_eq!(format!("{:>4}|{:<4}", Shown("ab"), Shown("ü")), "  ab|ü   ");
    }

    #[test]
    fn the_log_keeps_its_colours() {
        assert_eq!(coloured("\u{1b}[31mred\u{1b}[0m \u{9b}x"), "\u{1b}[31mred\u{1b}[0m \\u{9b}x");
        assert_eq!(coloured("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(coloured("\u{1b}"), "\\u{1b}");
        assert_eq!(coloured("x\u{1b}[3"), "x\\u{1b}[3");
    }

    proptest! {
        #[test]
        fn json_is_the_same_json(text in any::<String>(), also in "[\u{7f}-\u{9f}\u{2028}-\u{202e}\u{e0000}-\u{e007f}\"\\\\é]*") {
            let value = [text, also, NASTY.into()];
            let mut written = Vec::new();
            to_json(&mut written, &value).unwrap();
            let written = String::from_utf8(written).unwrap();
            prop_assert!(!written.chars().any(steers), "{written:?}");
            prop_assert_eq!(serde_json::from_str::<[String; 3]>(&written).unwrap(), value);
        }

        #[test]
        fn no_text_steers(text in any::<String>()) {
            prop_assert!(!Shown(&text).to_string().chars().any(steers));
            prop_assert!(!lines(&text).chars().any(|c| steers(c) && c != '\n' && c != '\t'));
            // The only escapes left are colours.
            let coloured = coloured(&text);
            let colours = coloured.matches('\u{1b}').count();
            let steering = coloured.chars().filter(|&c| steers(c) && c != '\n' && c != '\t').count();
            prop_assert_eq!(steering, colours);
        }
    }
}
