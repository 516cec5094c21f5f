//! One run of retrieval: opens the model and the tables, then answers batches of requests. Memory: the model, the catalogue,
//! table `sequences` and one batch.

use std::collections::{BTreeMap, HashSet};
use std::io::BufReader;
use std::path::Path;

use schemas::condition::nearest;
use schemas::config::{Config, ConfigError};
use schemas::history::DeltaTau;
use store::Root;
use store::boxed::Boxed;
use terminal::Progress;

use super::instructions::Instructions;
use super::requests::{BATCH, Lines, Requests, now};
use super::{
    Answer, Ask, By, ListLimits, ListRequest, Method, Refusal, RetrieveError, RetrieveOptions,
    RetrieveReport, Retriever, Row, RowsOutput, Stored, UserCase, Users, delta_tau,
};
use crate::checkpoint::{self, Checkpoint};
use crate::data::conditions::{Carriers, UnknownCondition};
use crate::data::{Catalogue, ConditionRow, ItemIndex, SequencesTable};
use crate::device;
use crate::serve::{GraphSetting, List, Merge, Merged, Recommender, Serving, merge};

/// The loaded model and tables.
struct Opened {
    checkpoint: Checkpoint,
    catalogue: Catalogue,
    sequences: SequencesTable,
    carriers: Carriers,
    delta_tau: DeltaTau,
}

impl Opened {
    async fn new(config: &Config, root: &Root, model: &str, titles: bool) -> Result<Self, RetrieveError> {
        let backend = device::open(config)?;
        let directory = root.model_path(model);
        let attributes = checkpoint::attributes(&directory)?;
        let catalogue = match titles {
            true => Catalogue::load_with_titles(root, &attributes).await?,
            false => Catalogue::load(root, &attributes).await?,
        };
        let checkpoint = checkpoint::load(&directory, &catalogue, &backend)?;
        let sequences = SequencesTable::load(root, catalogue.items()).await?;
        let delta_tau = delta_tau(&sequences.source.delta_tau_ms).ok_or(RetrieveError::DeltaTau)?;
        let derived = &checkpoint.config.conditions.derived;
        let carriers = Carriers::new(checkpoint.model.vocabulary().conditions(), derived, &catalogue);
        Ok(Self { checkpoint, catalogue, sequences, carriers, delta_tau })
    }

    /// Returns whether an item may be in a list, by item index.
    fn retrievable(&self, options: &RetrieveOptions<'_>) -> Result<Vec<bool>, RetrieveError> {
        let mut retrievable = self.catalogue.active.clone();
        if options.keep_inactive {
            retrievable[1..].fill(true);
        }
        if let Some(path) = options.deny {
            let denied: HashSet<String> = ids(path)?.into_iter().collect();
            for (retrievable, id) in retrievable.iter_mut().zip(&self.catalogue.item_ids) {
                *retrievable &= !denied.contains(id);
            }
        }
        Ok(retrievable)
    }

    /// Returns the model, prepared to list the `retrievable` items.
    fn recommender<'a>(
        &'a self,
        options: &RetrieveOptions<'_>,
        retrievable: &'a [bool],
        seed: u64,
    ) -> Result<Box<dyn Recommender + 'a>, RetrieveError> {
        let items = self.catalogue.items();
        let graph = match options.method {
            Method::Exact => None,
            Method::Hnsw { ef } => Some(GraphSetting { ef: ef.max(options.k), retrievable }),
        };
        // All reads of a batch of requests are encoded together.
        let serving = Serving { items, carriers: Some(&self.carriers), seed, batch: usize::MAX, graph };
        Ok(self.checkpoint.model.recommender(serving)?)
    }

    fn retriever<'a>(
        &'a self,
        options: &RetrieveOptions<'_>,
        recommender: &'a dyn Recommender,
        retrievable: &[bool],
    ) -> Retriever<'a> {
        let limits = ListLimits { k: options.k, only: options.only, keep_seen: options.keep_seen };
        let max_len = self.sequences.max_len.max(1);
        let counts = self.sequences.training_counts(self.catalogue.items());
        Retriever::new(recommender, max_len, &self.carriers, retrievable.to_vec(), counts, limits)
    }

    async fn requests(
        &self,
        config: &Config,
        root: &Root,
        options: &RetrieveOptions<'_>,
        retriever: &mut Retriever<'_>,
    ) -> Result<Requests<'_>, RetrieveError> {
        let known = self.checkpoint.model.vocabulary().conditions();
        let min_pool = config.conditions.min_pool;
        let at = options.at.unwrap_or_else(now);
        let instructions = match options.by {
            By::Conditions(texts) => Instructions::same(texts, known, min_pool, retriever, at),
            By::Instructions => match known.is_empty() {
                true => Err(ConfigError::Invalid {
                    key: "--instructions".into(),
                    problem: UnknownCondition::None.to_string(),
                }),
                false => Ok(Instructions::stored(root, known).await?),
            },
        };
        Ok(Requests {
            stored: Stored::new(&self.sequences),
            items: self
                .catalogue
                .item_ids
                .iter()
                .map(String::as_str)
                .zip((0..).map(ItemIndex::new))
                .skip(1)
                .collect(),
            delta_tau: self.delta_tau,
            at: options.at,
            conditions: known,
            min_pool,
            instructions: instructions.map_err(RetrieveError::Usage)?,
        })
    }
}

/// Reads ids from a file, one per line.
fn ids(path: &Path) -> Result<Vec<String>, RetrieveError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| RetrieveError::Ids { path: path.to_owned(), source })?;
    Ok(text.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect())
}

/// Retrieves with `options` and writes the rows to `output`; the caller finishes `output`.
///
/// # Errors
///
/// The model or a table cannot be loaded, an option is invalid, the output cannot be written, or the run is interrupted.
pub fn run<'a>(
    config: &'a Config,
    root: &'a Root,
    options: RetrieveOptions<'a>,
    output: &'a mut RowsOutput,
) -> Boxed<'a, Result<RetrieveReport, RetrieveError>> {
    Box::pin(retrieve(config, root, options, output))
}

async fn retrieve(
    config: &Config,
    root: &Root,
    options: RetrieveOptions<'_>,
    output: &mut RowsOutput,
) -> Result<RetrieveReport, RetrieveError> {
    let opened = Opened::new(config, root, options.model, false).await?;
    let retrievable = opened.retrievable(&options)?;
    let recommender = opened.recommender(&options, &retrievable, config.seed)?;
    let mut retriever = opened.retriever(&options, &*recommender, &retrievable);
    let requests = opened.requests(config, root, &options, &mut retriever).await?;
    let mut report = RetrieveReport { k: options.k, ..RetrieveReport::default() };
    let users = match options.users {
        Users::Stdin => {
            let lines = Lines::new(BufReader::new(std::io::stdin()));
            let mut progress = Progress::start("retrieve", 0, "users");
            loop {
                let batch = lines.batch(options.interrupt)?;
                let request =
                    |(number, line): &(usize, _)| requests.line(*number, line, &mut retriever, &mut report);
                let asked: Vec<Result<ListRequest, Refusal>> = batch.iter().map(request).collect();
                if options.interrupt.requested() {
                    return Err(RetrieveError::Interrupted);
                }
                if asked.is_empty() || output.closed() {
                    return Ok(report);
                }
                answer(&opened, &mut retriever, &asked, options.merge, &mut report, output)?;
                progress.add(asked.len() as u64);
            }
        }
        Users::All => opened.sequences.users.clone(),
        Users::File(path) => ids(path)?,
    };
    let mut progress = Progress::start("retrieve", users.len() as u64, "users");
    for batch in users.chunks(BATCH) {
        if options.interrupt.requested() {
            return Err(RetrieveError::Interrupted);
        }
        let asked: Vec<_> =
            batch.iter().map(|user| Ok(requests.user(user, &mut retriever, &mut report))).collect();
        answer(&opened, &mut retriever, &asked, options.merge, &mut report, output)?;
        progress.add(batch.len() as u64);
        if output.closed() {
            break;
        }
    }
    Ok(report)
}

/// Returns the lists of one user side by side (Figure 4).
///
/// # Errors
///
/// The model or a table cannot be loaded, or table `sequences` does not contain the user.
pub fn case<'a>(
    config: &'a Config,
    root: &'a Root,
    options: RetrieveOptions<'a>,
    user: &'a str,
) -> Boxed<'a, Result<UserCase, RetrieveError>> {
    Box::pin(draw_case(config, root, options, user))
}

async fn draw_case(
    config: &Config,
    root: &Root,
    options: RetrieveOptions<'_>,
    user: &str,
) -> Result<UserCase, RetrieveError> {
    let opened = Opened::new(config, root, options.model, true).await?;
    let retrievable = opened.retrievable(&options)?;
    let recommender = opened.recommender(&options, &retrievable, config.seed)?;
    let mut retriever = opened.retriever(&options, &*recommender, &retrievable);
    let requests = opened.requests(config, root, &options, &mut retriever).await?;
    let mut report = RetrieveReport { k: options.k, ..RetrieveReport::default() };
    let mut request = requests.user(user, &mut retriever, &mut report);
    if report.unknown_users.count > 0 {
        let near = opened.sequences.users.iter().map(String::as_str);
        let near = nearest(user, near).join(", ");
        let problem = format!("`sequences` has no user `{user}`; the nearest: {near}");
        return Err(RetrieveError::Usage(ConfigError::Invalid { key: "--case".into(), problem }));
    }
    request.asks.retain(|ask| ask.condition.is_some());
    request.asks.insert(0, Ask::PLAIN);
    let lists = retriever.lists(std::slice::from_ref(&request), &mut report)?.remove(0);
    Ok(UserCase::new(&opened.checkpoint, &opened.catalogue, request, &lists))
}

/// Answers one batch, in order.
fn answer(
    opened: &Opened,
    retriever: &mut Retriever<'_>,
    asked: &[Result<ListRequest, Refusal>],
    merged: Option<Merge>,
    report: &mut RetrieveReport,
    output: &mut RowsOutput,
) -> Result<(), RetrieveError> {
    let conditions = opened.checkpoint.model.vocabulary().conditions();
    let name = |row: ConditionRow| conditions.get(row).map(|condition| condition.to_string());
    let requests: Vec<ListRequest> = asked.iter().flatten().cloned().collect();
    let lists = retriever.lists(&requests, report)?;
    let names: BTreeMap<ConditionRow, String> = lists
        .iter()
        .flatten()
        .filter_map(|list| list.condition.and_then(|row| Some((row, name(row)?))))
        .collect();
    let is_empty = |lists: &Vec<List>| lists.iter().all(|list| list.items.is_empty());
    let empty: Vec<Option<Refusal>> = requests
        .iter()
        .zip(&lists)
        .map(|(request, lists)| is_empty(lists).then(|| Refusal::nothing_left(request)).flatten())
        .collect();
    let mut answers = Vec::new();
    let (mut lists, mut empty) = (lists.iter(), empty.iter());
    for request in asked {
        let request = match request {
            Ok(request) => request,
            Err(refusal) => {
                answers.push(Answer::Refusal(refusal));
                continue;
            }
        };
        let lists = lists.next().map_or(&[][..], Vec::as_slice);
        let of_user: Vec<Vec<Merged>> = match merged {
            Some(rule) => vec![merge(lists, rule, report.k)],
            None => lists.iter().map(List::apart).collect(),
        };
        let ranked = of_user.iter().flat_map(|list| (1..).zip(list));
        let before = answers.len();
        answers.extend(ranked.map(|(rank, merged)| {
            Answer::Row(Row {
                user_id: &request.user_id,
                condition: merged.condition.and_then(|row| names.get(&row)).map(String::as_str),
                rank,
                item_id: &opened.catalogue.item_ids[merged.scored.item.index()],
                score: merged.scored.score,
                origin: merged.origin,
            })
        }));
        report.rows += answers.len() - before;
        // A request with only empty lists still gets an answer.
        answers.extend(empty.next().and_then(Option::as_ref).map(Answer::Refusal));
        report.users += 1;
        report.without_history += usize::from(request.history.is_empty());
    }
    Ok(output.write(&answers)?)
}
