//! HTML section of a table of instruction examples.

use super::super::SftContents;
use super::distribution::{charts, distribution};
use crate::html::chart::{Bar, Frame, lying};
use crate::html::number;
use crate::html::page::{facts, table};

pub(super) fn section(contents: &SftContents) -> String {
    let e = &contents.examples;
    let mut html = facts(&[
        ("users", number(contents.users)),
        ("examples", number(e.total())),
        ("visible history that matches", format!("{:.2}%", 100.0 * contents.match_rate.mean)),
        ("examples that see no match", format!("{:.2}%", 100.0 * contents.match_rate.without)),
    ]);
    let roles = [("instruction tuning", e.sft), ("validation", e.validation), ("test", e.test)];
    let values: Vec<Bar> = contents
        .top
        .iter()
        .map(|top| {
            let bar = Bar::share(&top.value, top.examples, e.total());
            let pool = top.pool.map_or_else(String::new, |pool| format!(", {} active items", number(pool)));
            Bar { value: format!("{}{pool}", bar.value), ..bar }
        })
        .collect();
    let note = format!("{} values have examples; the most frequent", number(contents.values));
    html.push_str(&charts([
        lying(
            &Frame { title: "Examples by role", note: String::new(), x: "examples", y: "", wide: false },
            &roles.map(|(label, count)| Bar::share(label, count, e.total())),
        ),
        lying(&Frame { title: "Values", note, x: "examples", y: "", wide: false }, &values),
        distribution("History length", "positions before the target", "examples", &contents.history_length),
        distribution(
            "Visible history",
            "positions that the target may see",
            "examples",
            &contents.visible_length,
        ),
        distribution(
            "Matching history",
            "visible positions that carry the value",
            "examples",
            &contents.matching_length,
        ),
    ]));
    html.push_str(&table(
        &["user", "role", "value", "#item", "#weight", "#history", "newest places"],
        contents.shown.iter().map(|example| {
            vec![
                example.user.clone(),
                example.role.to_owned(),
                example.condition.clone(),
                example.target_item.to_string(),
                format!("{:.3}", example.weight),
                number(example.history),
                example.places.clone(),
            ]
        }),
    ));
    html
}
