//! `pipeline init`: writes the configuration that reads given files.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use pipeline::init::{InitAnswers, InitReport, InitRequest, Preset, propose};
use schemas::config::ConfigError;
use terminal::{CommonArgs, print_json};

/// Look at files of an interaction log, and of a catalogue, and write the configuration that reads them.
///
/// Looks at the first records of each file only: format, delimiter, header, which file is what, which column holds what, and how
/// times and lists are written. Prints each conclusion with its evidence, three records beside the events they become, and what is
/// unsure. If something needed cannot be told, it writes nothing, asks with the option that answers, and ends with exit code 2.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline init ratings.csv movies.csv --out my.toml
  pipeline ingest --config my.toml --check
  pipeline init 'logs/*.parquet' --catalogue items.jsonl --time served_at --out my.toml
  pipeline init behaviors.tsv news.tsv --preset mind --dry-run")]
pub(crate) struct Args {
    /// Files, directories or glob patterns, of the log and of the catalogue.
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Configuration to write.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Files of the log, where that cannot be told.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    events: Vec<String>,
    /// Files of the catalogue, where that cannot be told.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    catalogue: Vec<String>,
    /// Data set whose format is published.
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Column of the log that holds the user.
    #[arg(long, value_name = "COLUMN")]
    user: Option<String>,
    /// Column of the log that holds the item, or the list of items.
    #[arg(long, value_name = "COLUMN")]
    item: Option<String>,
    /// Column of the log that holds the time.
    #[arg(long, value_name = "COLUMN")]
    time: Option<String>,
    /// Column of the log that holds the request that exposed the item.
    #[arg(long, value_name = "COLUMN")]
    request: Option<String>,
    /// Column of the log that holds the action.
    #[arg(long, value_name = "COLUMN")]
    action: Option<String>,
    /// Column of the log that holds the value, such as a rating.
    #[arg(long, value_name = "COLUMN")]
    value: Option<String>,
    /// Column of the catalogue that holds the item.
    #[arg(long, value_name = "COLUMN")]
    catalogue_item: Option<String>,
    /// How the log's times are written: s, ms, us, ns, iso, rfc3339, or a pattern such as '%d/%m/%Y %H:%M'.
    #[arg(long, value_name = "FORMAT")]
    ts_format: Option<String>,
    /// Text between two fields; \t is a tab.
    #[arg(long, value_name = "TEXT")]
    delimiter: Option<String>,
    /// Names of the columns of a file without a header; may be repeated for files with other numbers of columns.
    #[arg(long, value_name = "a,b,c")]
    names: Vec<String>,
    /// The first line names the columns, where that cannot be told.
    #[arg(long)]
    header: bool,
    /// Print the configuration and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Replace an existing configuration.
    #[arg(long)]
    force: bool,
}

impl Args {
    fn request(self) -> InitRequest {
        let names = |text: &String| text.split(',').map(|name| name.trim().to_owned()).collect();
        InitRequest {
            paths: self.paths,
            events: self.events,
            catalogue: self.catalogue,
            preset: self.preset,
            answers: InitAnswers {
                user: self.user,
                item: self.item,
                time: self.time,
                request: self.request,
                action: self.action,
                value: self.value,
                catalogue_item: self.catalogue_item,
                ts_format: self.ts_format,
                delimiter: self.delimiter.map(|text| text.replace("\\t", "\t")),
                names: self.names.iter().map(names).collect(),
                has_header: self.header,
            },
            out: self.out.unwrap_or_else(|| "log.toml".into()),
        }
    }
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let (dry_run, force) = (args.dry_run, args.force);
    if common.config.is_some() || common.root.is_some() || !common.set.is_empty() {
        let problem = "init writes a configuration and takes none; --config, --root and --set belong to the next commands";
        return Err(usage("--config", problem));
    }
    let request = args.request();
    let out = request.out.clone();
    if !dry_run && !force && out.exists() {
        return Err(usage("--out", &format!("{} is there already; --force replaces it", out.display())));
    }
    let report = tokio::task::spawn_blocking(move || propose(&request)).await?;
    let Some(text) = &report.configuration else {
        show(common, &report)?;
        let mut options: Vec<&str> =
            report.questions.iter().map(|question| question.option.as_str()).collect();
        options.dedup();
        return Err(usage("init", &format!("nothing was written; answer with {}", options.join(", "))));
    };
    if dry_run {
        show(common, &report)?;
        if !common.json {
            print_text(text)?;
        }
        eprintln!("nothing was written");
        return Ok(());
    }
    write(&out, text, force).with_context(|| format!("cannot write {}", out.display()))?;
    show(common, &report)?;
    let out = out.display();
    eprintln!(
        "written: {out}\nnext: pipeline ingest --config {out}\n      pipeline build-sequences --config {out}\n      trainer pretrain --config {out} --name base"
    );
    Ok(())
}

fn usage(key: &str, problem: &str) -> anyhow::Error {
    ConfigError::Invalid { key: key.into(), problem: problem.into() }.into()
}

/// Writes the configuration; without `force`, only if there is none.
fn write(out: &Path, text: &str, force: bool) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(out)?.write_all(text.as_bytes())
}

/// Prints the configuration to stdout, where it may be piped on.
fn print_text(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn show(common: &CommonArgs, report: &InitReport) -> anyhow::Result<()> {
    eprintln!("{}", report.to_string().trim_end());
    if common.json {
        print_json(report)?;
    }
    Ok(())
}
