//! Which lists each user is given: by conditions that are asked for, or by the user's stored instructions (§3.4.1).

use std::collections::HashMap;

use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use schemas::condition::Condition;
use schemas::config::ConfigError;
use schemas::tables;
use store::Root;

use super::report::RetrieveReport;
use super::retriever::{Ask, Retriever};
use crate::data::conditions::KnownConditions;
use crate::data::{ConditionRow, DataError};

/// The lists of every user.
#[derive(Debug)]
pub(super) enum Instructions {
    /// The same for all.
    Same(Vec<Ask>),
    /// Those of table `instructions`.
    Stored(Table),
}

/// The table `instructions`.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Its different conditions.
    conditions: Vec<Known>,
    /// By user, the places in `conditions` and the weights.
    users: HashMap<String, Vec<(u32, f32)>>,
}

#[derive(Debug)]
struct Known {
    name: String,
    /// Its row; `None` of one that the model does not know.
    row: Option<ConditionRow>,
}

/// A condition that is asked for by name: its row. Pools with fewer than `min_pool` retrievable carriers are refused.
pub(super) fn resolve(
    text: &str,
    known: &KnownConditions,
    min_pool: usize,
    retriever: &mut Retriever<'_>,
    at: i64,
) -> Result<Ask, String> {
    let condition: Condition = text.parse().map_err(|e| format!("{e}"))?;
    let row = known.row(&condition).map_err(|e| e.to_string())?;
    let size = retriever.prepare(row, at);
    if size < min_pool.max(1) {
        return Err(format!(
            "`{condition}` is carried by {size} items that may be retrieved, fewer than conditions.min_pool = \
             {min_pool}; ages count from the time of the request, which `--at` sets"
        ));
    }
    Ok(Ask { condition: Some(row), weight: 1.0 })
}

/// Conditions as the command line has them: each text is one, or several with commas between.
pub(super) fn split<'a>(texts: &'a [String], known: &KnownConditions) -> Vec<&'a str> {
    let whole = |text: &str| text.parse().is_ok_and(|condition: Condition| known.row(&condition).is_ok());
    let mut all = Vec::new();
    for text in texts {
        match whole(text) {
            // Values may have commas of their own.
            true => all.push(text.as_str()),
            false => all.extend(text.split(',')),
        }
    }
    all
}

impl Instructions {
    /// The same for all users: one list for each of `texts`, or one without a condition where there is none.
    pub(super) fn same(
        texts: &[String],
        known: &KnownConditions,
        min_pool: usize,
        retriever: &mut Retriever<'_>,
        at: i64,
    ) -> Result<Self, ConfigError> {
        if texts.is_empty() {
            return Ok(Self::Same(vec![Ask::PLAIN]));
        }
        let mut asks = Vec::new();
        for text in split(texts, known) {
            let ask = resolve(text, known, min_pool, retriever, at)
                .map_err(|problem| ConfigError::Invalid { key: "--conditions".into(), problem })?;
            if !asks.contains(&ask) {
                asks.push(ask);
            }
        }
        Ok(Self::Same(asks))
    }

    /// Those of table `instructions`, for a model that follows some.
    pub(super) async fn stored(root: &Root, known: &KnownConditions) -> Result<Self, DataError> {
        let snapshot = root.require(tables::INSTRUCTIONS, "pipeline instructions").await?;
        let columns = ["user_id", "attributes", "conditions", "weights"];
        let other = |c: usize| DataError::ColumnType {
            table: tables::INSTRUCTIONS.into(),
            column: columns[c].into(),
        };
        let mut table = Table::default();
        let mut places: HashMap<Condition, u32> = HashMap::new();
        for batch in snapshot.read(&columns).await? {
            let users = batch.column(0).as_string_opt::<i32>().ok_or_else(|| other(0))?;
            let list = |c: usize| batch.column(c).as_list_opt::<i32>().ok_or_else(|| other(c));
            let (attributes, values, weights) = (list(1)?, list(2)?, list(3)?);
            for row in 0..batch.num_rows() {
                let (attributes, values) = (attributes.value(row), values.value(row));
                let weights = weights.value(row);
                let attributes = attributes.as_string_opt::<i32>().ok_or_else(|| other(1))?;
                let values = values.as_string_opt::<i32>().ok_or_else(|| other(2))?;
                let weights = weights.as_primitive_opt::<Float32Type>().ok_or_else(|| other(3))?;
                let mut of_user = Vec::with_capacity(weights.len());
                for ((attribute, value), &weight) in
                    attributes.iter().flatten().zip(values.iter().flatten()).zip(weights.values())
                {
                    let condition = Condition { attribute: attribute.into(), value: value.into() };
                    let place = *places.entry(condition).or_insert_with_key(|condition| {
                        table.conditions.push(Known::new(condition, known));
                        table.conditions.len() as u32 - 1
                    });
                    of_user.push((place, weight));
                }
                table.users.insert(users.value(row).to_owned(), of_user);
            }
        }
        Ok(Self::Stored(table))
    }

    /// The lists of a user at time `at` (epoch milliseconds). An instruction is skipped if the model does not know its condition, or
    /// if fewer than `min_pool` items carry it at that time. A user without a usable instruction gets one list without a condition.
    pub(super) fn of(
        &self,
        user: &str,
        min_pool: usize,
        at: i64,
        retriever: &mut Retriever<'_>,
        report: &mut RetrieveReport,
    ) -> Vec<Ask> {
        let table = match self {
            Self::Same(asks) => return asks.clone(),
            Self::Stored(table) => table,
        };
        let mut asks = Vec::new();
        for &(place, weight) in table.users.get(user).into_iter().flatten() {
            let Known { name, row } = &table.conditions[place as usize];
            match *row {
                None => report.unknown_instructions.add(name),
                Some(row) if retriever.prepare(row, at) < min_pool.max(1) => report.small_pools.add(name),
                Some(row) => asks.push(Ask { condition: Some(row), weight }),
            }
        }
        if asks.is_empty() {
            report.without_instructions += 1;
            asks.push(Ask::PLAIN);
        }
        asks
    }
}

impl Known {
    fn new(condition: &Condition, known: &KnownConditions) -> Self {
        Self { name: condition.to_string(), row: known.row(condition).ok() }
    }
}
