//! Evaluation under each user's own recall instructions (§3.4.1), as served to requests that name no condition.
//!
//! Instructions are derived from the target's visible history at its time, by the definition of table `instructions`; the table
//! itself covers the newest events, including held-out ones. The lists of one target are merged (`weighted`) before they are
//! scored. Also measures the diversity of lists by the users' activity (Table 5).
//!
//! Memory: three lists per target, and the seen items and unmerged lists of one block of targets.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use schemas::config::Instructions;
use serde::Serialize;

use super::condition::{Filters, Question};
use super::metrics::{Answer, LIST};
use super::results::mean;
use super::{AskedConditions, EvaluateError, Evaluation, Metrics, PerMetric, Protocol, Target};
use crate::data::{ConditionRow, ItemIndex};
use crate::serve::{List, ListFilter, ListQuery, Merge, Merged, Origin, Recommender, merge};

/// Targets whose seen items and unmerged lists are held at a time.
const BLOCK: usize = 1 << 10;

/// Places of a list in which distinct values are counted.
const DIVERSITY: usize = 20;

/// Diversity of lists for one group of users: distinct values of an attribute among the first 20 items, seen items filtered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diversity {
    /// Name of the model.
    pub model: String,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Attribute whose values are counted.
    pub attribute: String,
    /// `low`, `middle` or `high`: thirds of the targets, by the length of the visible history.
    pub activity: &'static str,
    /// Number of targets in the group.
    pub targets: usize,
    /// Mean number of distinct values without instructions.
    pub plain: f64,
    /// Mean number of distinct values with each user's own instructions.
    pub instructed: f64,
}

/// A target and its questions.
struct AskedTarget<'a> {
    target: &'a Target,
    /// Number of visible events.
    activity: usize,
    /// Indexes of its questions.
    questions: Range<usize>,
}

/// Lists of one target.
struct Lists {
    /// Merged over the user's instructions: without a filter by the condition, and with one.
    merged: [Vec<Merged>; 2],
    plain: Vec<ItemIndex>,
}

impl Evaluation<'_> {
    /// Returns the metrics and the diversity of `model`, labelled `name`, under the users' own instructions: seen items filtered,
    /// without and with a filter by the condition. Conditions with fewer than `min_pool` active carriers give no instructions.
    pub(super) fn under_instructions(
        &self,
        name: &str,
        model: &dyn Recommender,
        instructed: AskedConditions<'_>,
        settings: &Instructions,
        min_pool: usize,
        protocol: Protocol,
    ) -> Result<(Vec<Metrics>, Vec<Diversity>), EvaluateError> {
        let quota = quotas(instructed, settings);
        let newest = self.targets.iter().map(|target| self.time(target)).max().unwrap_or(0);
        let AskedConditions { conditions, carriers } = instructed;
        let pools = carriers.pool_sizes(conditions, newest, &self.catalogue.active);
        let quota: Vec<Quota> = quota
            .into_iter()
            .map(|quota| {
                let large = |&row: &ConditionRow| pools[row.index()] >= min_pool;
                Quota { rows: quota.rows.into_iter().filter(large).collect(), ..quota }
            })
            .collect();
        let (mut questions, mut asked) = (Vec::new(), Vec::new());
        for (target, context) in self.asked(protocol) {
            let at = self.time(target);
            let events = self.visible_events(target, context);
            let since = at.saturating_sub(settings.window.ms);
            let in_window: Vec<(ItemIndex, i64)> =
                events.iter().copied().filter(|&(_, ts)| ts > since && ts <= at).collect();
            let first = questions.len();
            let instructions = instructions(instructed, &quota, settings.per_user, &in_window);
            questions.extend(instructions.into_iter().map(|(condition, weight)| Question {
                target,
                context,
                condition,
                at,
                weight,
            }));
            asked.push(AskedTarget { target, activity: events.len(), questions: first..questions.len() });
        }
        let lists = self.lists(model, instructed, protocol, &questions, &asked)?;
        let attributes: Vec<&str> = quota.iter().map(|quota| quota.attribute.as_str()).collect();
        let metrics = self.merged_metrics(name, protocol, &attributes.join("+"), instructed, &asked, &lists);
        let diversity = quota
            .iter()
            .flat_map(|quota| self.diversity(name, protocol, quota, instructed, &asked, &lists))
            .collect();
        Ok((metrics, diversity))
    }

    /// Returns the items and times of all events visible to a target, including those before its row.
    fn visible_events(&self, target: &Target, context: usize) -> Vec<(ItemIndex, i64)> {
        let sequences = self.sequences;
        let Some(last) = context.checked_sub(1) else { return Vec::new() };
        let last = sequences.places[sequences.row(target.row).start + last] as usize;
        sequences.positions(target.row, last + 1).map(|p| (sequences.items[p], sequences.ts[p])).collect()
    }

    fn lists(
        &self,
        model: &dyn Recommender,
        instructed: AskedConditions<'_>,
        protocol: Protocol,
        questions: &[Question<'_>],
        asked: &[AskedTarget<'_>],
    ) -> Result<Vec<Lists>, EvaluateError> {
        let instructed_answers = self.read_under(model, questions)?;
        let plain_answers = self
            .read(model, self.asked(protocol).into_iter().map(|(target, context)| (target, context, None)))?;
        let mut all = Vec::with_capacity(asked.len());
        for (number, block) in asked.chunks(BLOCK).enumerate() {
            let seen: Vec<Vec<ItemIndex>> =
                block.par_iter().map(|asked| asked.target.seen(self.sequences, protocol)).collect();
            let (first, last) = (block[0].questions.start, block[block.len() - 1].questions.end);
            // Without a filter by the condition, and with one.
            let filters: Vec<[ListFilter<'_>; 2]> = block
                .iter()
                .zip(&seen)
                .flat_map(|(asked, seen)| questions[asked.questions.clone()].iter().map(move |q| (q, seen)))
                .map(|(question, seen)| {
                    [Filters::ALL[0], Filters::ALL[1]]
                        .map(|filters| self.filter(filters, question, seen, instructed))
                })
                .collect();
            let asking: Vec<ListQuery<'_>> =
                (first..last).zip(&filters).map(|(answer, filters)| ListQuery { answer, filters }).collect();
            let lists = instructed_answers.best(&asking, LIST)?;
            let unseen: Vec<[ListFilter<'_>; 1]> = seen
                .iter()
                .map(|seen| [ListFilter { allowed: &self.catalogue.active, seen, carrying: None }])
                .collect();
            let asking: Vec<ListQuery<'_>> = (number * BLOCK..)
                .zip(&unseen)
                .map(|(answer, filters)| ListQuery { answer, filters })
                .collect();
            let plain = plain_answers.best(&asking, LIST)?;
            for (asked, plain) in block.iter().zip(plain) {
                let of_target = asked.questions.clone();
                let merged = [0, 1].map(|filter| {
                    let list = |q: usize| List {
                        condition: Some(questions[q].condition),
                        weight: questions[q].weight as f32,
                        sharpness: 1.0,
                        origin: Origin::Model,
                        items: lists[2 * (q - first) + filter].clone(),
                    };
                    merge(&of_target.clone().map(list).collect::<Vec<List>>(), Merge::Weighted, LIST)
                });
                all.push(Lists { merged, plain: plain.iter().map(|scored| scored.item).collect() });
            }
        }
        Ok(all)
    }

    fn merged_metrics(
        &self,
        name: &str,
        protocol: Protocol,
        attributes: &str,
        instructed: AskedConditions<'_>,
        asked: &[AskedTarget<'_>],
        lists: &[Lists],
    ) -> Vec<Metrics> {
        let left_out = self.targets.iter().filter(|t| t.context(protocol).is_none()).count();
        let of_filter = |(i, filters): (usize, Filters)| {
            let mut sums = PerMetric::from_fn(|_| 0.0);
            let mut targets = 0;
            for (asked, lists) in asked.iter().zip(lists).filter(|(asked, _)| !asked.questions.is_empty()) {
                let merged = &lists.merged[i];
                let at = self.time(asked.target);
                let place = merged.iter().position(|m| m.scored.item == asked.target.item);
                let carries = |m: &Merged| {
                    m.condition.is_some_and(|row| instructed.carriers.carries(m.scored.item, row, at))
                };
                let compliant = |k: usize| merged.iter().take(k).filter(|m| carries(m)).count() as u32;
                sums += Answer::new(place.map(|p| p as u32 + 1), compliant).values();
                targets += 1;
            }
            Metrics {
                condition: Some(attributes.into()),
                condition_from: Some("instructions".into()),
                condition_filter: filters.condition,
                without_condition: asked.len() - targets as usize,
                targets: targets as usize,
                no_history: self.targets.len() - asked.len() - left_out,
                left_out,
                means: sums.map(|sum| mean(sum, f64::from(targets))),
                ..Metrics::of(name, self.split, protocol, filters.seen)
            }
        };
        Filters::ALL.into_iter().take(2).enumerate().map(of_filter).collect()
    }

    fn diversity(
        &self,
        name: &str,
        protocol: Protocol,
        quota: &Quota,
        instructed: AskedConditions<'_>,
        asked: &[AskedTarget<'_>],
        lists: &[Lists],
    ) -> Vec<Diversity> {
        let mut by_activity: Vec<(&AskedTarget<'_>, &Lists)> =
            asked.iter().zip(lists).filter(|(asked, _)| !asked.questions.is_empty()).collect();
        by_activity.sort_by_key(|(asked, _)| asked.activity);
        let third = by_activity.len().div_ceil(3).max(1);
        let Ok(rows) = instructed.conditions.rows(&quota.attribute) else { return Vec::new() };
        let groups = ["low", "middle", "high"].into_iter().zip(by_activity.chunks(third));
        groups
            .map(|(activity, group)| {
                let mean = |values: &dyn Fn(&Lists) -> Vec<ItemIndex>| {
                    let different = |&(asked, lists): &(&AskedTarget<'_>, &Lists)| {
                        let at = self.time(asked.target);
                        let items = values(lists);
                        let carried = items.iter().take(DIVERSITY).flat_map(|&item| {
                            instructed.carriers.carried(item, &rows, at).collect::<Vec<_>>()
                        });
                        carried.collect::<std::collections::HashSet<ConditionRow>>().len() as f64
                    };
                    group.iter().map(different).sum::<f64>() / group.len() as f64
                };
                Diversity {
                    model: name.into(),
                    protocol,
                    attribute: quota.attribute.clone(),
                    activity,
                    targets: group.len(),
                    plain: mean(&|lists| lists.plain.clone()),
                    instructed: mean(&|lists| lists.merged[0].iter().map(|m| m.scored.item).collect()),
                }
            })
            .collect()
    }
}

/// An attribute that gives instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Quota {
    attribute: String,
    /// Rows of its conditions that can be instructions.
    rows: Vec<ConditionRow>,
    /// Maximum instructions per user from this attribute.
    most: usize,
}

/// Returns the attributes in `settings` that the model knows, or all it knows if `settings` names none.
fn quotas(AskedConditions { conditions, .. }: AskedConditions<'_>, settings: &Instructions) -> Vec<Quota> {
    let most = |name: &str| match settings.quota.is_empty() {
        true => Some(settings.per_user),
        false => settings.quota.get(name).copied(),
    };
    let of = |name: &str| {
        let rows = conditions.rows(name).ok()?.iter().collect();
        Some(Quota { attribute: name.to_owned(), rows, most: most(name)? })
    };
    conditions.attributes().filter_map(of).collect()
}

/// Returns a user's instructions and weights, heaviest first, from the events in the window.
fn instructions(
    AskedConditions { conditions, carriers }: AskedConditions<'_>,
    quotas: &[Quota],
    per_user: usize,
    events: &[(ItemIndex, i64)],
) -> Vec<(ConditionRow, f64)> {
    let key = |row: ConditionRow| conditions.get(row).map(|c| (c.attribute, c.value));
    let heaviest = |a: &(ConditionRow, f64), b: &(ConditionRow, f64)| {
        b.1.total_cmp(&a.1).then_with(|| key(a.0).cmp(&key(b.0)))
    };
    let mut all = Vec::new();
    for Quota { attribute, rows, most } in quotas {
        let Ok(values) = conditions.rows(attribute) else { continue };
        // As in table `instructions`: integer counts by number of values, and weights compared as the stored `f32`.
        let mut counts: BTreeMap<(ConditionRow, usize), u64> = BTreeMap::new();
        for &(item, ts) in events {
            // Values that cannot be instructions still take their share of the event.
            let carried: Vec<ConditionRow> = carriers.carried(item, &values, ts).collect();
            for row in carried.iter().filter(|row| rows.binary_search(row).is_ok()) {
                *counts.entry((*row, carried.len())).or_default() += 1;
            }
        }
        let mut sums: BTreeMap<ConditionRow, f64> = BTreeMap::new();
        for ((row, values), count) in counts {
            *sums.entry(row).or_default() += count as f64 / values as f64;
        }
        let weight = |sum: f64| f64::from((sum / events.len() as f64) as f32);
        let mut weights: Vec<(ConditionRow, f64)> =
            sums.into_iter().map(|(row, sum)| (row, weight(sum))).collect();
        weights.sort_by(heaviest);
        all.extend(weights.into_iter().take(*most));
    }
    all.sort_by(heaviest);
    all.truncate(per_user);
    all
}

#[cfg(test)]
mod tests {
    use schemas::config::Conditions as Settings;

    use super::*;
    use crate::data::conditions::{Carriers, KnownConditions};
    use crate::data::{Catalogue, ids};

    #[test]
    fn instructions_are_what_was_met_most_often() {
        let catalogue =
            Catalogue::example(&[("a", &["Rock"]), ("b", &["Jazz", "Rock"]), ("c", &[]), ("d", &["Folk"])]);
        let derived = Settings::default().derived;
        let conditions = KnownConditions::new(&["genre".into()], &derived, &catalogue);
        let carriers = Carriers::new(&conditions, &derived, &catalogue);
        let instructed = AskedConditions { conditions: &conditions, carriers: &carriers };
        let settings = Instructions::default();
        let found = |per_user: usize, quota: usize| -> Vec<(String, f64)> {
            let quota = Quota { attribute: "genre".into(), rows: ids(&[0, 1, 2]), most: quota };
            instructions(instructed, &[quota], per_user, &[1, 2, 3, 4].map(|item| (ItemIndex::new(item), 0)))
                .into_iter()
                .map(|(row, weight)| (conditions.get(row).unwrap().value, weight))
                .collect()
        };
        let expected = [("Rock".to_owned(), 0.375), ("Folk".to_owned(), 0.25), ("Jazz".to_owned(), 0.125)];
        assert_eq!(found(8, 8), expected);
        assert_eq!((found(2, 8), found(8, 1)), (expected[..2].to_vec(), expected[..1].to_vec()));
        let all = Quota { attribute: "genre".into(), rows: ids(&[0, 1, 2]), most: 8 };
        assert_eq!(quotas(instructed, &settings), [all]);
        let only = Instructions { quota: [("language".to_owned(), 1)].into(), ..settings };
        assert_eq!(quotas(instructed, &only), []);
    }
}
