//! `pipeline init`: looks at files and proposes the configuration that reads them.
//!
//! ```text
//!   files ─▶ sample: format, dialect, columns ([`sampled`], [`text`]) ─▶ log or catalogue ─▶ roles of columns ([`log`], [`catalogue`])
//!        ─▶ configuration ([`write`]) ─▶ the sample again, as `pipeline ingest` parses it ─▶ written, or a question
//! ```
//!
//! A conclusion is drawn from names ([`vocabulary`]) and values together, and its evidence is reported. What cannot be told is
//! asked, with the option that answers it, and nothing is written. Memory: the samples, some MiB a file.

mod catalogue;
mod clock;
mod layouts;
mod log;
mod sampled;
#[cfg(test)]
mod tests;
mod text;
mod vocabulary;
mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use schemas::config::Config;
use schemas::tables::EVENTS;
use serde::Serialize;

use self::catalogue::CatalogueRoles;
pub use self::layouts::Preset;
use self::log::{LogRoles, Notes};
use self::sampled::{ColumnProfile, SampledFile};
use self::vocabulary::Role;
use self::write::Part;
use crate::ingest::{CheckLimits, CheckReport, IngestError, check};

/// What the caller says about the files, instead of what they show.
#[derive(Debug, Clone, Default)]
pub struct InitAnswers {
    /// Column of the user.
    pub user: Option<String>,
    /// Column of the item.
    pub item: Option<String>,
    /// Column of the time.
    pub time: Option<String>,
    /// Column of the request.
    pub request: Option<String>,
    /// Column of the action.
    pub action: Option<String>,
    /// Column of the value.
    pub value: Option<String>,
    /// Column of the item in the catalogue.
    pub catalogue_item: Option<String>,
    /// How the log's times are written.
    pub ts_format: Option<String>,
    /// Text between two fields.
    pub delimiter: Option<String>,
    /// Names of the columns of files without a header; a file takes those of its number of columns.
    pub names: Vec<Vec<String>>,
    /// Whether a first line that may be either is a header.
    pub has_header: bool,
}

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct InitRequest {
    /// Files, directories or patterns of either kind.
    pub paths: Vec<String>,
    /// Files of the log.
    pub events: Vec<String>,
    /// Files of the catalogue.
    pub catalogue: Vec<String>,
    /// A published format.
    pub preset: Option<Preset>,
    /// What the caller says.
    pub answers: InitAnswers,
    /// The configuration's file; it need not be there.
    pub out: PathBuf,
}

/// A conclusion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what.
    pub what: &'static str,
    /// The column, mostly.
    pub is: String,
    /// The evidence.
    pub because: String,
}

/// What cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitQuestion {
    /// The option that answers it.
    pub option: String,
    /// What is missing, and what the files show of it.
    pub question: String,
}

/// What was concluded about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitFile {
    /// As given.
    pub path: String,
    /// `log`, `catalogue` or `not used`.
    pub kind: &'static str,
    /// How it is written.
    pub evidence: Vec<String>,
}

/// What the files show. Either there is a configuration, or there are questions.
#[derive(Debug, Default, Serialize)]
pub struct InitReport {
    /// The files.
    pub files: Vec<InitFile>,
    /// Conclusions about columns.
    pub findings: Vec<Finding>,
    /// What may be otherwise.
    pub unsure: Vec<String>,
    /// What has to be answered first.
    pub questions: Vec<InitQuestion>,
    /// The sample as the configuration reads it.
    pub check: Option<CheckReport>,
    /// The configuration.
    pub configuration: Option<String>,
}

/// Files with the same format, dialect and columns; the first has the values of all.
struct FileGroup {
    files: Vec<SampledFile>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    Catalogue,
    Other,
}

/// Files of a directory, and files in all.
const FILES_MAX: usize = 1_000;
/// Files of a group whose values are looked at together.
const TOGETHER_MAX: usize = 8;

/// Looks at the files and proposes a configuration, or asks. Writes nothing.
pub fn propose(request: &InitRequest) -> InitReport {
    let mut report = InitReport::default();
    let configuration = propose_into(request, &mut report);
    report.configuration = configuration.filter(|_| report.questions.is_empty());
    report
}

fn ask(report: &mut InitReport, option: &str, question: impl Into<String>) {
    report.questions.push(InitQuestion { option: option.into(), question: question.into() });
}

fn propose_into(request: &InitRequest, report: &mut InitReport) -> Option<String> {
    let mut answers = request.answers.clone();
    if let Some(preset) = request.preset {
        if let Some(refusal) = preset.refusal() {
            ask(report, "--preset", refusal);
            return None;
        }
        preset.complete(&mut answers);
    }
    let groups = groups(request, &answers, report)?;
    let log = chosen(&groups, Kind::Log, report);
    let catalogue = chosen(&groups, Kind::Catalogue, report);
    report_files(&groups, report);
    let (log, catalogue) = (log?, catalogue?);
    let Some(log) = log else {
        let none = match catalogue {
            Some(group) => format!("{} has no user: it is a catalogue; name a log", group.files[0].path),
            None => "no file is an interaction log".into(),
        };
        ask(report, "--events", none);
        return None;
    };
    let mut notes = Notes::default();
    let roles = log::roles(&log.files[0], &answers, &mut notes);
    let items = roles.as_ref().map(|roles| catalogue::items_of(&log.files[0], roles)).unwrap_or_default();
    let catalogue_roles =
        catalogue.map(|group| catalogue::roles(&group.files[0], &items, &answers, &mut notes));
    report.findings.extend(notes.findings);
    report.unsure.extend(notes.unsure);
    report.questions.extend(notes.questions);
    let roles = roles?;
    let catalogue = match (catalogue, catalogue_roles) {
        (Some(group), Some(roles)) => Some((group, roles?)),
        _ => None,
    };
    if !report.questions.is_empty() {
        return None;
    }
    if request.preset.is_some_and(|preset| preset.contradicts(&log.files[0])) {
        let problem = "the items are not the 10 characters of an Amazon product; sets of 2018 have item,user,rating,timestamp: \
                       name them so without a preset, with --names";
        ask(report, "--preset", format!("{}: {problem}", log.files[0].path));
        return None;
    }
    let text = configuration(request, log, roles.clone(), catalogue.clone(), true, report)?;
    // Who names the format means the times.
    match verify(&text, &request.out, answers.ts_format.is_some(), report) {
        true => configuration(request, log, roles, catalogue, false, report),
        false => Some(text),
    }
}

/// The configuration's text.
fn configuration(
    request: &InitRequest,
    log: &FileGroup,
    roles: LogRoles,
    catalogue: Option<(&FileGroup, CatalogueRoles)>,
    check_times: bool,
    report: &mut InitReport,
) -> Option<String> {
    let folder = match request.out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = match std::fs::canonicalize(folder) {
        Ok(folder) => folder,
        Err(error) => {
            ask(report, "--out", format!("{}: {error}", folder.display()));
            return None;
        }
    };
    let name = request.out.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| "log".into());
    let part = |group: &FileGroup| {
        let files: Vec<&SampledFile> = group.files.iter().collect();
        (write::paths(&files, &folder), files.iter().map(|file| file.rows_estimate).sum::<u64>())
    };
    let (paths, rows_estimate) = part(log);
    let log = Part { file: &log.files[0], paths, rows_estimate, roles };
    let catalogue = catalogue.map(|(group, roles)| {
        let (paths, rows_estimate) = part(group);
        Part { file: &group.files[0], paths, rows_estimate, roles }
    });
    Some(write::text(&name, &log, catalogue.as_ref(), check_times))
}

/// [`check`] for a caller that does not wait: on a thread with a runtime of its own.
fn check_now(config: &Config) -> Result<CheckReport, IngestError> {
    let on_its_own = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("a runtime: {error}"));
        runtime.block_on(check(config, CheckLimits::default()))
    };
    std::thread::scope(|scope| match scope.spawn(on_its_own).join() {
        Ok(checked) => checked,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Reads the sample again by the configuration, as a run does; what a run would refuse is a question. Returns whether times look
/// wrong although the caller is sure of them.
fn verify(text: &str, out: &Path, sure_of_times: bool, report: &mut InitReport) -> bool {
    let config = match Config::parse(text, out, &[]) {
        Ok(config) => config,
        Err(error) => {
            ask(report, "--out", format!("the configuration is refused: {error}"));
            return false;
        }
    };
    let checked = match check_now(&config) {
        Ok(checked) => checked,
        Err(error) => {
            ask(report, "PATH", terminal::with_causes(&error));
            return false;
        }
    };
    let mut doubted = false;
    for file in &checked.files {
        let counts = file.counts;
        let first = file.dead_letters.first().map(|dead| dead.message.as_str()).unwrap_or_default();
        let dead = format!(
            "{}: {} of {} records of the sample cannot be used: {first}",
            file.path, counts.dead_letters, counts.read
        );
        if counts.accepted == 0 && file.table == EVENTS {
            ask(report, "PATH", format!("{}: no record of the sample is an event; {first}", file.path));
        } else if counts.dead_letters as f64 > config.events.max_dead_letter_rate * counts.read as f64 {
            ask(report, "PATH", dead);
        } else if counts.dead_letters > 0 {
            report.unsure.push(dead);
        }
        if file.repeated_ids > 0 {
            let n = file.repeated_ids;
            let question = format!(
                "{}: column `event_id` repeats for {n} different events of the sample, which would be dropped as duplicates; \
                 rename the column",
                file.path
            );
            ask(report, "PATH", question);
        }
        if let Some(doubt) = &file.doubt {
            let doubt = format!("{}: {doubt}", file.path);
            match sure_of_times {
                true => report.unsure.push(doubt),
                false => ask(report, "--ts-format", doubt),
            }
            doubted |= sure_of_times;
        }
        let year_ahead = chrono::Utc::now().timestamp_millis().saturating_add(366 * 86_400_000);
        if file.span.is_some_and(|(_, last)| last > year_ahead) {
            report.unsure.push(format!("{}: some times lie more than a year ahead", file.path));
        }
    }
    report.check = Some(checked);
    doubted
}

/// Looks at all files and groups those that belong together.
fn groups(request: &InitRequest, answers: &InitAnswers, report: &mut InitReport) -> Option<Vec<FileGroup>> {
    let mut seen = BTreeSet::new();
    let mut groups: Vec<FileGroup> = Vec::new();
    let given = [
        (&request.events, Some(Kind::Log)),
        (&request.catalogue, Some(Kind::Catalogue)),
        (&request.paths, None),
    ];
    let mut bad = false;
    for (paths, forced) in given {
        for path in paths {
            let (files, is_named) = match expand(path) {
                Ok(found) => found,
                Err(problem) => {
                    ask(report, "PATH", format!("{path}: {problem}"));
                    bad = true;
                    continue;
                }
            };
            for path in files {
                if !seen.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| PathBuf::from(&path))) {
                    continue;
                }
                match sampled::look_at(&path, answers) {
                    Ok(file) => {
                        let kind = forced.unwrap_or_else(|| kind(&file, answers, request.preset));
                        add(&mut groups, file, kind);
                    }
                    // Other files of a directory are left alone, unless they alone would be the log.
                    Err(question) if !is_named => {
                        let evidence = vec![question.question.clone()];
                        report.files.push(InitFile { path, kind: "not used", evidence });
                    }
                    Err(question) => {
                        report.questions.push(question);
                        bad = true;
                    }
                }
            }
        }
    }
    if seen.is_empty() && !bad {
        ask(report, "PATH", "name the files of the log, and of the catalogue if there is one");
    }
    // The only file is the log, whatever it lacks.
    if let [group] = groups.as_mut_slice()
        && request.catalogue.is_empty()
    {
        group.kind = Kind::Log;
    }
    let has_log = groups.iter().any(|group| group.kind == Kind::Log);
    if !has_log && let Some(group) = groups.iter_mut().find(|group| group.kind == Kind::Other) {
        group.kind = Kind::Log;
    }
    (!bad && !groups.is_empty()).then_some(groups)
}

/// The files that a path names, and whether it names each of them.
fn expand(path: &str) -> Result<(Vec<String>, bool), String> {
    let given = Path::new(path);
    if given.is_dir() {
        let entries = std::fs::read_dir(given).map_err(|error| error.to_string())?;
        let mut files: Vec<String> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && !is_about(path))
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        files.sort();
        return match files.len() {
            0 => Err("has no files; name them".into()),
            1..FILES_MAX => Ok((files, false)),
            n => Err(format!("has {n} files; name those of one kind with --events and --catalogue")),
        };
    }
    if given.exists() || !path.contains(['*', '?', '[']) {
        return Ok((vec![path.to_owned()], true));
    }
    let found = glob::glob(path).map_err(|error| format!("is no pattern: {error}"))?;
    let mut files: Vec<String> = found
        .filter_map(Result::ok)
        .filter(|path| path.is_file())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    files.sort();
    if files.is_empty() { Err("no file matches this pattern".into()) } else { Ok((files, true)) }
}

/// Whether a file of a directory is about the data, and not data.
fn is_about(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let about = ["readme", "license", "changelog", ".", "_"];
    let endings =
        [".md", ".toml", ".txt", ".pdf", ".html", ".py", ".sh", ".ipynb", ".crc", ".json", ".yaml", ".yml"];
    about.iter().any(|begin| name.starts_with(begin)) || endings.iter().any(|ending| name.ends_with(ending))
}

/// Adds a file to the group that it belongs to.
fn add(groups: &mut Vec<FileGroup>, file: SampledFile, kind: Kind) {
    let names = |file: &SampledFile| file.columns.iter().map(|c| c.name.clone()).collect::<BTreeSet<_>>();
    let belongs = |group: &&mut FileGroup| {
        let first = &group.files[0];
        let (a, b) = (names(first), names(&file));
        let common = a.intersection(&b).count();
        let alike = match file.input.format {
            // Objects may lack keys.
            schemas::config::Format::Jsonl => common * 2 >= a.len().max(b.len()),
            _ => a == b,
        };
        group.kind == kind
            && alike
            && first.input.format == file.input.format
            && first.input.dialect == file.input.dialect
            && first.named_format == file.named_format
            && first.named_dialect == file.named_dialect
    };
    let found = groups.iter_mut().find(belongs);
    let Some(group) = found else {
        groups.push(FileGroup { files: vec![file], kind });
        return;
    };
    if group.files.len() < TOGETHER_MAX {
        let first = &mut group.files[0];
        for column in &mut first.columns {
            match file.column(&column.name) {
                Some(other) => column.values.extend(other.values.iter().cloned()),
                None => column.values.extend(std::iter::repeat_n(crate::records::Value::Absent, file.rows)),
            }
            column.count();
        }
        first.rows += file.rows;
        first.is_whole &= file.is_whole;
    } else {
        group.files[0].is_whole = false;
    }
    group.files.push(file);
}

/// What a file is, by the names of its columns and their values.
fn kind(file: &SampledFile, answers: &InitAnswers, preset: Option<Preset>) -> Kind {
    if let Some(preset) = preset {
        if preset.is_log(&file.path) == Some(true) {
            return Kind::Log;
        }
        if preset.is_catalogue(&file.path) == Some(true) {
            return Kind::Catalogue;
        }
        if preset.is_log(&file.path) == Some(false) {
            return Kind::Other;
        }
    }
    if !file.is_named {
        return Kind::Log;
    }
    let named = |answer: &Option<String>| answer.as_ref().and_then(|name| file.column(name));
    let of = |role: Role, fits: &dyn Fn(&ColumnProfile) -> bool| {
        file.columns.iter().find(|column| role.rank(&column.name).is_some() && fits(column))
    };
    let is_ids = |column: &ColumnProfile| column.may_be_id();
    let may_be_items = |column: &ColumnProfile| column.may_be_id() || column.facts.lists > 0;
    let user = named(&answers.user).or_else(|| of(Role::User, &is_ids));
    let item = named(&answers.item).or_else(|| of(Role::Item, &may_be_items));
    let time = named(&answers.time).or_else(|| of(Role::Time, &|_| true));
    match (user, item) {
        (Some(_), Some(_)) => Kind::Log,
        (None, Some(item)) => {
            let is_unique = item.facts.distinct * 100 >= item.facts.filled * 99;
            if time.is_some() && !is_unique { Kind::Log } else { Kind::Catalogue }
        }
        (Some(_), None) if time.is_some() => Kind::Log,
        _ => Kind::Other,
    }
}

/// The group of a kind: none if several may be it, which is a question, `Some(None)` if there is none.
fn chosen<'g>(groups: &'g [FileGroup], kind: Kind, report: &mut InitReport) -> Option<Option<&'g FileGroup>> {
    let found: Vec<&FileGroup> = groups.iter().filter(|group| group.kind == kind).collect();
    match found.as_slice() {
        [] => Some(None),
        [group] => Some(Some(group)),
        several => {
            let (option, what) = match kind {
                Kind::Log => ("--events", "a log"),
                _ => ("--catalogue", "a catalogue"),
            };
            let paths: Vec<String> = several.iter().map(|group| group.files[0].path.clone()).collect();
            ask(
                report,
                option,
                format!("{} may each be {what}, and differ in their columns", paths.join(", ")),
            );
            None
        }
    }
}

fn report_files(groups: &[FileGroup], report: &mut InitReport) {
    for group in groups {
        let kind = match group.kind {
            Kind::Log => "log",
            Kind::Catalogue => "catalogue",
            Kind::Other => "not used",
        };
        for file in &group.files {
            report.files.push(InitFile { path: file.path.clone(), kind, evidence: file.evidence.clone() });
        }
    }
}

impl fmt::Display for InitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_FILES: usize = 12;
        for file in self.files.iter().take(SHOWN_FILES) {
            writeln!(f, "{}: {}; {}", file.path, file.kind, file.evidence.join("; "))?;
        }
        if self.files.len() > SHOWN_FILES {
            writeln!(f, "and {} more files", self.files.len() - SHOWN_FILES)?;
        }
        let width = self.findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
        for Finding { what, is, because } in &self.findings {
            writeln!(f, "  {what:width$}  {is}  ({because})")?;
        }
        for unsure in &self.unsure {
            writeln!(f, "  unsure: {unsure}")?;
        }
        for file in self.check.iter().flat_map(|check| &check.files) {
            writeln!(f, "{file}")?;
        }
        for InitQuestion { option, question } in &self.questions {
            writeln!(f, "  {option}? {question}")?;
        }
        Ok(())
    }
}
