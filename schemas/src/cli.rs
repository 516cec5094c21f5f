//! What the three programs' command lines share: common arguments, exit codes, progress.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::config::{Config, ConfigError};
use crate::{scratch, secret, shown};

/// Done.
pub const EXIT_DONE: u8 = 0;
/// Failed.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const EXIT_USAGE: u8 = 2;
/// `inspect --verify` found a violation.
pub const EXIT_VIOLATION: u8 = 3;

/// A claim of a table that does not hold; exit code 3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violated(pub String);

/// Arguments that every command takes.
#[derive(Clone, clap::Args)]
pub struct CommonArgs {
    /// Configuration file (TOML); config/ has examples.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of the tables and models, instead of the configuration's `root`.
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<String>,
    /// Override one key of the configuration, such as --set pretrain.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Write one JSON object to stdout.
    #[arg(long, global = true)]
    pub json: bool,
}

impl std::fmt::Debug for CommonArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: Vec<String> = self.set.iter().map(|setting| secret::shown_setting(setting)).collect();
        let Self { config, root, set: _, json } = self;
        f.debug_struct("CommonArgs")
            .field("config", config)
            .field("root", root)
            .field("set", &set)
            .field("json", json)
            .finish()
    }
}

impl CommonArgs {
    /// The resolved configuration: the file (or the defaults), then `--set`, then `--root`. From here on, files and directories of
    /// this process are as `file_access` says, and temporary ones where `scratch` says.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::load(path, &self.set)?,
            None => Config::from_overrides(&self.set)?,
        };
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        config.validate()?;
        config.file_access.apply();
        if let Some(directory) = &config.scratch {
            scratch::use_directory(Path::new(directory))?;
        }
        Ok(config)
    }
}

/// Writes to stderr what the macro [`eprintln`](crate::eprintln) was given; it does not matter whether anything reads it.
pub fn print_error(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(shown::lines(&text.to_string()).as_bytes());
}

/// Stderr for a log: as [`print_error`], but the log's own colours stay, and JSON stays JSON.
#[derive(Debug, Clone, Copy)]
pub enum LogOutput {
    /// Lines for people, with colours or without.
    Text,
    /// JSON objects.
    Json,
}

impl std::io::Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let shown = match self {
            Self::Text => shown::coloured(&text),
            Self::Json => shown::json_lines(&text),
        };
        std::io::stderr().write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An error with its causes, in one line.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        // A wrapper that already prints its source would otherwise say everything twice.
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Prints an error with its causes to stderr, and says which exit code belongs to it.
pub fn report(program: &str, error: &(dyn std::error::Error + 'static)) -> u8 {
    eprintln!("{program}: {}", with_causes(error));
    if causes(error).any(|cause| cause.is::<ConfigError>()) {
        EXIT_USAGE
    } else if causes(error).any(|cause| cause.is::<Violated>()) {
        EXIT_VIOLATION
    } else {
        EXIT_FAILED
    }
}

/// Writes one JSON object to stdout. A reader that has gone away is no error.
pub fn print_json(report: &impl serde::Serialize) -> std::io::Result<()> {
    let mut text = Vec::new();
    shown::to_json(&mut text, report)?;
    text.push(b'\n');
    match std::io::stdout().write_all(&text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// A request to stop. Clones are the same request.
///
/// Long loops ask [`requested`](Self::requested) between two pieces of work and clean up on the way out.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<watch::Sender<bool>>);

impl Interrupt {
    /// One that the first Ctrl-C or SIGTERM of the process requests; a second ends the process at once. Must be
    /// called inside a Tokio runtime with more than one thread.
    pub fn on_signal() -> Self {
        let interrupt = Self::default();
        let handle = interrupt.clone();
        tokio::spawn(async move {
            if signalled().await.is_ok() {
                handle.request();
                eprintln!("stopping; press Ctrl-C again to stop at once");
            }
            if signalled().await.is_ok() {
                std::process::exit(i32::from(EXIT_FAILED));
            }
        });
        interrupt
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether the stop was requested.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves when the stop is requested: for work that can simply be dropped.
    pub async fn wait(&self) {
        // The sender lives as long as `self`, so this ends by a request only.
        let _ = self.0.subscribe().wait_for(|&requested| requested).await;
    }
}

/// Resolves at the next Ctrl-C, or at the next SIGTERM, as schedulers send it.
async fn signalled() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

/// Progress of one long step: a bar on a terminal, a plain line every few seconds elsewhere.
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
    /// Starts a step of `total` units; a total of 0 is unknown.
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

    /// `n` more units are done.
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

    /// Shows `message` behind the figures.
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
