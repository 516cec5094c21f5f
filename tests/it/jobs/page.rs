//! The page of a day in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{run_day, service};

/// Returns a browser that runs without a screen.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let found = names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    if found.is_none() {
        testkit::skipped("the page of a day in a browser", names[0]);
    }
    found
}

#[test]
fn the_page_of_a_day_shows_itself_without_anything_else() {
    let Some(browser) = browser() else { return };
    let workspace = service(3);
    for day in 1..=3 {
        run_day(&workspace, day);
    }
    let page = workspace.root().join("jobs/daily/2026-01-03/report.html");
    let picture: PathBuf = workspace.path("page.png");
    let profile = format!("--user-data-dir={}", workspace.path("profile").display());
    let run = |task: &str| {
        let output = Command::new(browser)
            // Tests run as root in containers, where the browser's sandbox is unavailable; nothing on the page is foreign.
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--window-size=1200,3600",
            ])
            .args(["--host-resolver-rules=MAP * ~NOTFOUND", &profile, task])
            .arg(format!("file://{}", page.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = run("--dump-dom");
    for part in
        ["Daily job of 2026-01-03", "published, as publication 3", "Seconds by step", "CC@10, by condition"]
    {
        assert!(shown.contains(part), "{part}");
    }
    // Two days were predicted before they were learned: a line with two points.
    assert!(shown.contains("prequential, 01-02: 0.") && shown.contains("prequential, 01-03: 0."), "{shown}");
    let photograph = |picture: &Path| {
        run(&format!("--screenshot={}", picture.display()));
        std::fs::read(picture).unwrap()
    };
    let bytes = photograph(&picture);
    assert!(bytes.starts_with(b"\x89PNG"));
    let side = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (1200, 3600));
    // The charts are drawn: without their content, the page gives a smaller picture.
    let whole = std::fs::read_to_string(&page).unwrap();
    let (mut blank, mut rest, mut charts) = (String::new(), whole.as_str(), 0);
    while let Some((before, chart)) = rest.split_once("<svg") {
        let (start, inside) = chart.split_once('>').unwrap();
        blank += &format!("{before}<svg{start}></svg>");
        (rest, charts) = (inside.split_once("</svg>").unwrap().1, charts + 1);
    }
    assert!(charts >= 4, "{charts} charts");
    std::fs::write(&page, blank + rest).unwrap();
    let without = photograph(&workspace.path("without.png")).len();
    assert!(without < bytes.len(), "{without} of {} bytes without charts", bytes.len());
    if let Some(keep) = std::env::var_os("CLIMBER_PILOT_PICTURES") {
        std::fs::create_dir_all(&keep).unwrap();
        std::fs::copy(&picture, PathBuf::from(keep).join("daily.png")).unwrap();
    }
}
