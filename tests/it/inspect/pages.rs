//! Pages: charts, harmless texts, and a target's view of its history.

use crate::programs::{Workspace, json, stderr};

fn built(workspace: &Workspace) {
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
}

#[test]
fn the_page_has_every_chart_and_needs_nothing_else() {
    let workspace = Workspace::new();
    built(&workspace);
    let output = workspace.succeed("pipeline", &["inspect", "--html", "page.html", "--json"]);
    let page = std::fs::read_to_string(workspace.path("page.html")).unwrap();
    for chart in [
        "Events a day",
        "Popularity",
        "What the most popular items take",
        "Sequence length",
        "Row length",
        "Session length",
        "Request batch size",
        "Time between events",
        "Hidden by the time-aware mask",
        "Targets by role",
        "genre",
    ] {
        assert!(page.contains(&format!("aria-label=\"{chart}\"")), "{chart}");
    }
    for table in ["events", "items", "dead_letters", "sequences"] {
        assert!(page.contains(&format!("<h2>{table}</h2>")), "{table}");
    }
    assert!(
        page.contains("delta_tau_ms") && page.contains("<title>") && page.contains("(prefers-color-scheme")
    );
    for outside in ["http://", "https://", "<script", "<link", "<img", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let report = json(&output);
    let events =
        report["tables"].as_array().unwrap().iter().find(|table| table["table"] == "events").unwrap();
    let popularity = &events["contents"]["popularity"];
    assert_eq!(popularity["items"], 30, "{popularity}");
    assert_eq!(popularity["curve"][0]["rank"], 1);
    // The terminal shows the same.
    let text = stderr(&output);
    assert!(text.contains("time between events: 760 in all"), "{text}");
    assert!(text.contains("top 10% (3)"), "{text}");
}

#[test]
fn hostile_texts_stay_texts() {
    let workspace = Workspace::new();
    let attack = r#"<script>alert('\"x\"')</script>"#;
    let catalogue = std::fs::read_to_string(workspace.path("items.jsonl")).unwrap();
    workspace
        .write("items.jsonl", catalogue.replace("Item 7\"", &format!("{attack}\"")).replace("Rock", attack));
    let log = std::fs::read_to_string(workspace.path("log.csv")).unwrap();
    workspace.write("log.csv", log.replace("u0,", "<b>u0</b>,"));
    built(&workspace);
    workspace.succeed("pipeline", &["inspect", "--html", "tables.html"]);
    workspace.succeed("pipeline", &["inspect", "--user", "<b>u0</b>", "--html", "user.html"]);
    for (name, shown) in
        [("tables.html", "&lt;script&gt;alert(&#39;&quot;"), ("user.html", "&lt;b&gt;u0&lt;/b&gt;")]
    {
        let page = std::fs::read_to_string(workspace.path(name)).unwrap();
        assert!(page.contains(shown), "{name}");
        assert!(!page.contains("<script") && !page.contains("<b>"), "{name}");
    }
    let page = std::fs::read_to_string(workspace.path("user.html")).unwrap();
    assert!(page.contains("&lt;script&gt;"), "the title is shown");
}

#[test]
fn a_target_sees_what_its_row_says() {
    let workspace = Workspace::new();
    built(&workspace);
    // Events are 10 minutes apart, with 50 more after every fourth: at a `Δτ` of 15 minutes, the last one is hidden and the one
    // before is visible.
    let report =
        json(&workspace.succeed("pipeline", &["inspect", "--user", "u3", "--target", "6", "--json"]));
    let marks: Vec<&str> =
        report["entries"].as_array().unwrap().iter().map(|entry| entry["mark"].as_str().unwrap()).collect();
    assert_eq!(marks.len(), 20);
    assert_eq!(marks[4..8], ["visible", "within-delta-tau", "target", "later"], "{marks:?}");
    assert_eq!(report["target"], 6);
    let output = workspace.succeed("pipeline", &["inspect", "--user", "u3", "--last", "8"]);
    let text = stderr(&output);
    assert!(text.contains("mask for position 19, Δτ 15 min"), "{text}");
    assert_eq!(text.matches('◆').count(), 2, "once in the legend: {text}");
    assert!(text.contains("hidden: within Δτ"), "{text}");
    let text = workspace.fail("pipeline", &["inspect", "--user", "u3", "--target", "20"], 1);
    assert!(text.contains("`u3`") && text.contains("positions 0 to 19"), "{text}");
    let text = workspace.fail("pipeline", &["inspect", "--html", "no/such/page.html"], 1);
    assert!(text.contains("no/such/page.html"), "{text}");
    workspace.fail("pipeline", &["inspect", "--verify", "--user", "u3"], 2);
}
