//! Progress display of long work.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::shown;

/// Progress of one long step: a bar on a terminal, elsewhere a plain line every ten seconds.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    plain: Option<Plain>,
}

#[derive(Debug)]
struct Plain {
    label: String,
    unit: &'static str,
    started: Instant,
    printed: Instant,
}

const PLAIN_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// Starts a step of `total` units; 0 means unknown.
    pub fn start(label: &str, total: u64, unit: &'static str) -> Self {
        let label = shown::Shown(label);
        if std::io::stderr().is_terminal() {
            let bar = if total == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total) };
            let template = if total == 0 {
                format!("{{spinner}} {label} {{human_pos}} {unit} ({{per_sec}}) {{msg}}")
            } else {
                format!(
                    "{label} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}} left {{msg}}"
                )
            };
            let style =
                ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(200));
            Self { bar, plain: None }
        } else {
            let now = Instant::now();
            let bar = ProgressBar::hidden();
            if total > 0 {
                bar.set_length(total);
            }
            Self { bar, plain: Some(Plain { label: label.to_string(), unit, started: now, printed: now }) }
        }
    }

    /// Adds `n` finished units.
    pub fn add(&mut self, n: u64) {
        self.bar.inc(n);
        if let Some(plain) = &mut self.plain
            && plain.printed.elapsed() >= PLAIN_EVERY
        {
            plain.printed = Instant::now();
            let seconds = plain.started.elapsed().as_secs_f64();
            let (done, rate) = (self.bar.position(), self.bar.position() as f64 / seconds);
            let message = self.bar.message();
            match self.bar.length() {
                Some(total) if total >= done => eprintln!(
                    "{}: {done}/{total} {} ({rate:.0}/s, {:.0} s left) {message}",
                    plain.label,
                    plain.unit,
                    (total - done) as f64 / rate.max(1e-9)
                ),
                _ => eprintln!("{}: {done} {} ({rate:.0}/s) {message}", plain.label, plain.unit),
            }
        }
    }

    /// Shows `message` after the figures.
    pub fn message(&self, message: String) {
        self.bar.set_message(shown::Shown(&message).to_string());
    }

    /// Prints a line without disturbing the bar.
    pub fn line(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
