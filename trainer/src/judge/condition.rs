//! Evaluation under conditions: relevance (HR@K) and compliance (CC@K, Eq. 8) of instructed lists. As in the paper, the
//! instruction is the target item's own value of an attribute.
//!
//! A target with several values is evaluated once per value, with weights that sum to 1. Without a filter the whole catalogue is
//! ranked and compliance depends on the model alone; with a filter only carriers of the condition are ranked.
//!
//! Memory: one state and four answers per question, and the seen items of one block of questions.

use std::collections::BTreeMap;

use rayon::prelude::*;
use schemas::condition::Condition;
use serde::Serialize;

use super::metrics::{Answer, LIST};
use super::results::mean;
use super::stored::instructed::InstructedTarget;
use super::unknown;
use super::{
    CC_10, EvaluateError, EvaluateReport, Evaluation, HR_10, Metrics, PerMetric, Protocol, Target, TargetRank,
};
use crate::data::conditions::{Carriers, ConditionRows, KnownConditions};
use crate::data::{ConditionRow, ItemIndex};
use crate::kinds::TrainedModel;
use crate::serve::{Answers, Carrying, ListFilter, ListQuery, Recommender, Scored};

/// Questions whose seen items are held at a time.
const BLOCK: usize = 1 << 12;

/// Known conditions and the items that carry them.
#[derive(Debug, Clone, Copy)]
pub struct AskedConditions<'a> {
    /// The conditions that can be asked for.
    pub conditions: &'a KnownConditions,
    /// Which items carry them.
    pub carriers: &'a Carriers,
}

/// A target under one of its conditions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) target: &'a Target,
    /// Number of events that the protocol shows before the target.
    pub(super) context: usize,
    pub(super) condition: ConditionRow,
    /// Time of the target, epoch milliseconds.
    pub(super) at: i64,
    /// 1 over the number of the target's conditions; the weight of an instruction.
    pub(super) weight: f64,
}

impl Answer {
    /// Returns the answer to `question` from its `list`, under one choice of filters.
    fn of(
        question: &Question<'_>,
        list: &[Scored],
        AskedConditions { carriers, .. }: AskedConditions<'_>,
    ) -> Self {
        let place = list.iter().position(|scored| scored.item == question.target.item);
        let carries = |scored: &&Scored| carriers.carries(scored.item, question.condition, question.at);
        let compliant = |k: usize| list.iter().take(k).filter(carries).count() as u32;
        Self::new(place.map(|place| place as u32 + 1), compliant)
    }
}

/// Filters of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filters {
    /// Whether items that the user has seen are excluded.
    pub(super) seen: bool,
    /// Whether items that do not carry the condition are excluded.
    pub(super) condition: bool,
}

impl Filters {
    /// All choices, in the order of the tables.
    pub(super) const ALL: [Self; 4] = [
        Self { seen: true, condition: false },
        Self { seen: true, condition: true },
        Self { seen: false, condition: false },
        Self { seen: false, condition: true },
    ];
}

/// Metrics of a model under one condition, seen items filtered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConditionMetrics {
    /// Name of the model.
    pub model: String,
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Number of targets that carry it; a target with `n` values counts `1 / n`.
    pub targets: f64,
    /// Number of active items that carry it; for a derived condition, at the time of the newest target.
    pub pool: usize,
    /// HR@10 without a filter by the condition.
    #[serde(rename = "hr@10")]
    pub hr_10: f64,
    /// CC@10 without a filter by the condition.
    #[serde(rename = "cc@10")]
    pub cc_10: f64,
    /// HR@10 with a filter by the condition.
    #[serde(rename = "hr@10_filtered")]
    pub hr_10_filtered: f64,
}

impl Evaluation<'_> {
    /// Returns the metrics of `model`, labelled `name`, under the conditions of each target's own item: seen items filtered or
    /// kept, each without and with a filter by the condition. The values of all `attributes` are evaluated together.
    ///
    /// # Errors
    ///
    /// An attribute is unknown, a score is not finite, or a tensor operation fails.
    pub fn instructed(
        &self,
        name: &str,
        model: &dyn TrainedModel,
        instructed: AskedConditions<'_>,
        protocol: Protocol,
        attributes: &[&str],
    ) -> Result<Vec<Metrics>, EvaluateError> {
        let model = model.recommender(self.serving(Some(instructed.carriers)))?;
        let questions = self.questions(instructed, protocol, attributes)?;
        let answers = self.answers(&*model, instructed, protocol, &questions)?;
        Ok(self.under_conditions(name, protocol, &attributes.join("+"), &questions, &answers))
    }

    /// Adds the metrics of `model` under `attribute` to `report` and returns the numbers of each target.
    pub(super) fn under(
        &self,
        attribute: &str,
        name: &str,
        model: &dyn Recommender,
        instructed: AskedConditions<'_>,
        protocols: &[Protocol],
        report: &mut EvaluateReport,
    ) -> Result<Vec<InstructedTarget>, EvaluateError> {
        let mut rows = Vec::new();
        for &protocol in protocols {
            let questions = self.questions(instructed, protocol, &[attribute])?;
            let answers = self.answers(model, instructed, protocol, &questions)?;
            report.results.extend(self.under_conditions(name, protocol, attribute, &questions, &answers));
            report.by_condition.extend(self.by_condition(name, protocol, instructed, &questions, &answers));
            rows.extend(self.rows_under(protocol, &questions, &answers));
        }
        Ok(rows)
    }

    /// Returns one question per target that takes part under `protocol` and per value of `attributes` that its item carries.
    pub(super) fn questions(
        &self,
        AskedConditions { conditions, carriers }: AskedConditions<'_>,
        protocol: Protocol,
        attributes: &[&str],
    ) -> Result<Vec<Question<'_>>, EvaluateError> {
        let rows = attributes
            .iter()
            .map(|name| conditions.rows(name).map_err(|e| unknown(&e)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut questions = Vec::new();
        for (target, context) in self.asked(protocol) {
            let at = self.time(target);
            let carried = |rows: &ConditionRows| carriers.carried(target.item, rows, at).collect::<Vec<_>>();
            let own: Vec<ConditionRow> = rows.iter().flat_map(carried).collect();
            let weight = 1.0 / own.len() as f64;
            questions.extend(own.into_iter().map(|condition| Question {
                target,
                context,
                condition,
                at,
                weight,
            }));
        }
        Ok(questions)
    }

    /// Returns the time of a target, epoch milliseconds.
    pub(super) fn time(&self, target: &Target) -> i64 {
        self.sequences.ts[self.sequences.row(target.row).start + target.t]
    }

    /// Returns the answers to each question, one per entry of [`Filters::ALL`].
    pub(super) fn answers(
        &self,
        model: &dyn Recommender,
        instructed: AskedConditions<'_>,
        protocol: Protocol,
        questions: &[Question<'_>],
    ) -> Result<Vec<[Answer; 4]>, EvaluateError> {
        let read = self.read_under(model, questions)?;
        let mut answers = Vec::with_capacity(questions.len());
        for (number, block) in questions.chunks(BLOCK).enumerate() {
            let seen: Vec<Vec<ItemIndex>> =
                block.par_iter().map(|question| question.target.seen(self.sequences, protocol)).collect();
            let filters: Vec<[ListFilter<'_>; 4]> = block
                .iter()
                .zip(&seen)
                .map(|(question, seen)| {
                    Filters::ALL.map(|filters| self.filter(filters, question, seen, instructed))
                })
                .collect();
            let asked: Vec<ListQuery<'_>> = (number * BLOCK..)
                .zip(&filters)
                .map(|(answer, filters)| ListQuery { answer, filters })
                .collect();
            let lists = read.best(&asked, LIST)?;
            for (question, lists) in block.iter().zip(lists.chunks_exact(Filters::ALL.len())) {
                let mut answer = [Answer::default(); 4];
                for (answer, list) in answer.iter_mut().zip(lists) {
                    *answer = Answer::of(question, list, instructed);
                }
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    /// Returns the filter of a list of active items, as `filters` select.
    pub(super) fn filter<'f>(
        &'f self,
        filters: Filters,
        question: &Question<'_>,
        seen: &'f [ItemIndex],
        instructed: AskedConditions<'f>,
    ) -> ListFilter<'f> {
        let &Question { condition, at, .. } = question;
        let carrying = Carrying { carriers: instructed.carriers, condition, at };
        ListFilter {
            allowed: &self.catalogue.active,
            seen: if filters.seen { seen } else { &[] },
            carrying: filters.condition.then_some(carrying),
        }
    }

    /// Returns one answer per question, read under its condition.
    pub(super) fn read_under<'m>(
        &self,
        model: &'m dyn Recommender,
        questions: &[Question<'_>],
    ) -> Result<Box<dyn Answers + 'm>, EvaluateError> {
        self.read(model, questions.iter().map(|q| (q.target, q.context, Some(q.condition))))
    }

    /// Returns the means over all targets, for each of [`Filters::ALL`].
    pub(super) fn under_conditions(
        &self,
        name: &str,
        protocol: Protocol,
        attributes: &str,
        questions: &[Question<'_>],
        answers: &[[Answer; 4]],
    ) -> Vec<Metrics> {
        let targets = questions.iter().map(|question| question.weight).sum::<f64>();
        let left_out = self.targets.iter().filter(|t| t.context(protocol).is_none()).count();
        let asked = self.asked(protocol).len();
        let of = |(i, filters): (usize, Filters)| {
            let means = PerMetric::from_fn(|key| {
                let sum: f64 = questions.iter().zip(answers).map(|(q, a)| q.weight * a[i].value(key)).sum();
                mean(sum, targets)
            });
            Metrics {
                condition: Some(attributes.into()),
                condition_from: Some("target".into()),
                condition_filter: filters.condition,
                without_condition: asked - targets.round() as usize,
                targets: targets.round() as usize,
                no_history: self.targets.len() - asked - left_out,
                left_out,
                means,
                ..Metrics::of(name, self.split, protocol, filters.seen)
            }
        };
        Filters::ALL.into_iter().enumerate().map(of).collect()
    }

    /// Returns the numbers of each target to store, for each of [`Filters::ALL`].
    pub(super) fn rows_under(
        &self,
        protocol: Protocol,
        questions: &[Question<'_>],
        answers: &[[Answer; 4]],
    ) -> Vec<InstructedTarget> {
        let mut rows = Vec::new();
        let mut at = 0;
        // The questions of one target are consecutive.
        for same in questions.chunk_by(|a, b| std::ptr::eq(a.target, b.target)) {
            let answers = &answers[at..at + same.len()];
            at += same.len();
            let TargetRank { user_id, position, ts, item_id, .. } = self.row(same[0].target);
            for (i, filters) in Filters::ALL.into_iter().enumerate() {
                let mut numbers = PerMetric::from_fn(|_| 0.0);
                for answer in answers {
                    numbers += answer[i].values().map(|value| value / same.len() as f64);
                }
                rows.push(InstructedTarget {
                    user_id: user_id.clone(),
                    position,
                    ts,
                    item_id: item_id.clone(),
                    protocol,
                    filter_seen: filters.seen,
                    condition_filter: filters.condition,
                    numbers,
                });
            }
        }
        rows
    }

    /// Returns the metrics per condition, the most common condition first.
    pub(super) fn by_condition(
        &self,
        name: &str,
        protocol: Protocol,
        instructed: AskedConditions<'_>,
        questions: &[Question<'_>],
        answers: &[[Answer; 4]],
    ) -> Vec<ConditionMetrics> {
        let mut sums: BTreeMap<ConditionRow, [f64; 4]> = BTreeMap::new();
        for (question, [plain, filtered, ..]) in questions.iter().zip(answers) {
            let values = [1.0, plain.value(HR_10), plain.value(CC_10), filtered.value(HR_10)];
            for (sum, value) in sums.entry(question.condition).or_default().iter_mut().zip(values) {
                *sum += question.weight * value;
            }
        }
        let newest = questions.iter().map(|question| question.at).max().unwrap_or(0);
        let AskedConditions { conditions, carriers } = instructed;
        let pools = carriers.pool_sizes(conditions, newest, &self.catalogue.active);
        let of = |(row, [targets, hr_10, cc_10, hr_10_filtered]): (ConditionRow, [f64; 4])| {
            Some(ConditionMetrics {
                model: name.into(),
                condition: conditions.get(row)?,
                protocol,
                targets,
                pool: pools[row.index()],
                hr_10: hr_10 / targets,
                cc_10: cc_10 / targets,
                hr_10_filtered: hr_10_filtered / targets,
            })
        };
        let mut rows: Vec<ConditionMetrics> = sums.into_iter().filter_map(of).collect();
        rows.sort_by(|a, b| b.targets.total_cmp(&a.targets));
        rows
    }
}
