//! The page of one user: the history as one target sees it.
//!
//! Time between sessions is mostly empty and a session is mostly a burst, so no single scale shows both. The upper
//! chart is to scale and shows the times of the sessions; below it, each session is a block with one mark an event,
//! in order, and a line under the events of one request batch.

use std::fmt::Write as _;

use super::super::print::duration;
use super::super::timeline::{Entry, Mark, Timeline};
use crate::html::chart::Frame;
use crate::html::page::{facts, page as whole, table};
use crate::html::{Escaped, number};

const WIDTH: f64 = 1090.0;
/// Width of an event's mark.
const CELL: f64 = 22.0;
const LABEL: f64 = 250.0;

pub(super) fn page(timeline: &Timeline) -> String {
    let title = format!("User {}", timeline.user);
    let mut body = format!(
        "<h1>{}</h1>\n<p class=\"soft\">table {}, version {}</p>\n",
        Escaped(&title),
        Escaped(&timeline.table),
        timeline.version
    );
    let count = |marks: &[Mark]| {
        number(timeline.entries.iter().filter(|entry| marks.contains(&entry.mark)).count() as u64)
    };
    body.push_str(&facts(&[
        ("events", number(timeline.events)),
        ("sessions", number(timeline.sessions)),
        ("rows", number(timeline.rows)),
        ("drawn", number(timeline.entries.len() as u64)),
        ("Δτ", timeline.delta_tau_ms.map_or_else(|| "off".into(), duration)),
        ("target", format!("position {}", timeline.target)),
        ("of the drawn: visible", count(&[Mark::Visible])),
        ("hidden", count(&[Mark::WithinDeltaTau, Mark::OwnRequest, Mark::NotInRow])),
    ]));
    body.push_str(&legend());
    body.push_str("<div class=\"charts\" style=\"margin-top:12px\">\n");
    body.push_str(&overview(timeline));
    body.push_str(&sessions(timeline));
    body.push_str("</div>\n<h2>Events</h2>\n");
    body.push_str(&events(timeline));
    whole(&title, &body)
}

fn class(mark: Mark) -> &'static str {
    match mark {
        Mark::Visible => "visible",
        Mark::WithinDeltaTau | Mark::OwnRequest | Mark::NotInRow => "hidden",
        Mark::Target => "target",
        Mark::Later => "later",
    }
}

/// The mark of an event, about `x`, `y`; shapes differ so that colour is not needed.
fn shape(mark: Mark, x: f64, y: f64) -> String {
    let class = class(mark);
    match mark {
        Mark::Visible | Mark::Later => {
            format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5.5\"/>")
        }
        Mark::Target => {
            let (l, r, t, b) = (x - 8.0, x + 8.0, y - 8.0, y + 8.0);
            format!(
                "<path class=\"{class}\" d=\"M{x:.1} {t:.1} L{r:.1} {y:.1} L{x:.1} {b:.1} L{l:.1} {y:.1} Z\"/>"
            )
        }
        _ => format!(
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\"/>",
            x - 5.5,
            y - 5.5
        ),
    }
}

fn legend() -> String {
    let entry = |mark, words: &str| {
        format!("<span><svg viewBox=\"0 0 18 18\">{}</svg>{words}</span>", shape(mark, 9.0, 9.0))
    };
    format!(
        "<div class=\"legend\">{}{}{}{}<span>a line joins the events of one request batch</span></div>\n",
        entry(Mark::Visible, "visible to the target"),
        entry(Mark::WithinDeltaTau, "hidden from it"),
        entry(Mark::Target, "the target"),
        entry(Mark::Later, "later")
    )
}

/// The tooltip of an event.
fn tooltip(entry: &Entry) -> String {
    let title = entry.title.as_deref().map_or_else(String::new, |title| format!(" {title}"));
    let words = entry.mark.words();
    format!(
        "{}, {} UTC, item {}{title}, session {}, batch {}, row {}, {}, sees {} of {}{}{words}",
        entry.position,
        entry.ts.format("%Y-%m-%d %H:%M:%S"),
        entry.item(),
        entry.session,
        entry.request,
        entry.row,
        entry.role_name(),
        entry.visible_len,
        entry.row_position,
        if words.is_empty() { "" } else { "; " }
    )
}

/// All drawn events on one scale of time.
fn overview(timeline: &Timeline) -> String {
    const HEIGHT: f64 = 76.0;
    let (Some(first), Some(last)) = (timeline.entries.first(), timeline.entries.last()) else {
        return String::new();
    };
    let span = (last.ts - first.ts).num_milliseconds();
    let x = |entry: &Entry| {
        let at = (entry.ts - first.ts).num_milliseconds() as f64 / span.max(1) as f64;
        12.0 + (WIDTH - 24.0) * at
    };
    let mut svg = format!("<line class=\"base\" x1=\"12\" x2=\"{}\" y1=\"30\" y2=\"30\"/>", WIDTH - 12.0);
    // Draw the target last, so that no other mark covers it.
    let (target, others): (Vec<&Entry>, Vec<&Entry>) =
        timeline.entries.iter().partition(|entry| entry.mark == Mark::Target);
    for entry in others.into_iter().chain(target) {
        let shape = shape(entry.mark, x(entry), 30.0);
        let _ = write!(svg, "<g><title>{}</title>{shape}</g>", Escaped(&tooltip(entry)));
    }
    let format = if span < 3 * 86_400_000 { "%Y-%m-%d %H:%M" } else { "%Y-%m-%d" };
    for (part, anchor) in [(0, "start"), (1, "middle"), (2, "middle"), (3, "middle"), (4, "end")] {
        let time = first.ts + chrono::TimeDelta::milliseconds(span / 4 * part);
        let x = 12.0 + (WIDTH - 24.0) * part as f64 / 4.0;
        let _ = write!(
            svg,
            "<line class=\"base\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"46\" y2=\"51\"/>\
             <text x=\"{x:.1}\" y=\"66\" text-anchor=\"{anchor}\">{}</text>",
            time.format(format)
        );
        if span == 0 {
            break;
        }
    }
    let frame = Frame {
        title: "To scale",
        note: format!("{} from the first to the last event drawn (UTC)", duration(span)),
        x: "",
        y: "",
        wide: true,
    };
    frame.figure(WIDTH, HEIGHT, &svg)
}

/// One block a session, one mark an event.
fn sessions(timeline: &Timeline) -> String {
    let a_line = ((WIDTH - LABEL - 8.0) / CELL) as usize;
    let mut svg = String::new();
    let mut y = 4.0;
    let mut before: Option<&Entry> = None;
    for session in timeline.entries.chunk_by(|a, b| a.session == b.session) {
        let (first, last) = (&session[0], &session[session.len() - 1]);
        if let Some(before) = before {
            let gap = duration((first.ts - before.ts).num_milliseconds());
            let _ = write!(svg, "<text x=\"{LABEL}\" y=\"{:.1}\">{gap} later</text>", y + 12.0);
            y += 20.0;
        }
        before = Some(last);
        let height = 30.0 * session.len().div_ceil(a_line) as f64 + 4.0;
        let wide = CELL * session.len().min(a_line) as f64 + 8.0;
        let length = duration((last.ts - first.ts).num_milliseconds());
        let _ = write!(
            svg,
            "<rect class=\"session\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{height:.1}\" rx=\"6\"/>\
             <text class=\"strong\" x=\"0\" y=\"{:.1}\">session {}  {}</text>\
             <text x=\"0\" y=\"{:.1}\">{} in {length}</text>",
            LABEL - 4.0,
            y + 14.0,
            first.session,
            first.ts.format("%Y-%m-%d %H:%M:%S"),
            y + 28.0,
            if session.len() == 1 { "1 event".to_owned() } else { format!("{} events", session.len()) }
        );
        for (i, entry) in session.iter().enumerate() {
            let (line, column) = (i / a_line, i % a_line);
            let (cx, cy) = (LABEL + CELL * (column as f64 + 0.5), y + 13.0 + 30.0 * line as f64);
            let shape = shape(entry.mark, cx, cy);
            let _ = write!(svg, "<g><title>{}</title>{shape}</g>", Escaped(&tooltip(entry)));
            let joined = session.get(i + 1).is_some_and(|next| next.request == entry.request);
            if joined && column + 1 < a_line {
                let _ = write!(
                    svg,
                    "<line class=\"batch\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\"/>",
                    cx - 4.0,
                    cx + CELL + 4.0,
                    cy + 11.0
                );
            }
        }
        y += height + 4.0;
    }
    let frame = Frame {
        title: "Session by session",
        note: format!(
            "in order, not to scale: what the event at position {} may see; point at a mark for its item",
            timeline.target
        ),
        x: "",
        y: "",
        wide: true,
    };
    frame.figure(WIDTH, y.max(40.0), &svg)
}

fn events(timeline: &Timeline) -> String {
    let headings = [
        "#position",
        "",
        "=time (UTC)",
        "=item",
        "title",
        "#session",
        "#batch",
        "#row",
        "#sees",
        "=role",
        "=mask",
    ];
    table(
        &headings,
        timeline.entries.iter().map(|entry| {
            vec![
                entry.position.to_string(),
                entry.mark.glyph().to_string(),
                entry.ts.format("%Y-%m-%d %H:%M:%S").to_string(),
                entry.item(),
                entry.title.clone().unwrap_or_default(),
                entry.session.to_string(),
                entry.request.to_string(),
                entry.row.to_string(),
                format!("{}/{}", entry.visible_len, entry.row_position),
                entry.role_name().to_owned(),
                entry.mark.words().to_owned(),
            ]
        }),
    )
}
