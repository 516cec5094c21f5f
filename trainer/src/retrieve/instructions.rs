//! The lists that each user gets: one per requested condition, or one per stored instruction of the user (§3.4.1).
//!
//! Memory: table `instructions` as one small vector per user.

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

/// The lists to make for each user.
#[derive(Debug)]
pub(super) enum Instructions {
    /// The same lists for all users.
    Same(Vec<Ask>),
    /// The lists of table `instructions`.
    Stored(Table),
}

/// Table `instructions`, by user.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Distinct conditions.
    conditions: Vec<Known>,
    /// Indexes into `conditions` and weights, by user.
    users: HashMap<String, Vec<(u32, f32)>>,
}

#[derive(Debug)]
struct Known {
    name: String,
    /// Row of the condition; `None` if the model does not know it.
    row: Option<ConditionRow>,
}

/// Parses the name of a condition and returns its list.
///
/// # Errors
///
/// The model does not know the condition, or fewer than `min_pool` retrievable items carry it at time `at`.
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

/// Splits conditions of the command line: each text is one condition, or several separated by commas.
pub(super) fn split<'a>(texts: &'a [String], known: &KnownConditions) -> Vec<&'a str> {
    let whole = |text: &str| text.parse().is_ok_and(|condition: Condition| known.row(&condition).is_ok());
    let mut all = Vec::new();
    for text in texts {
        match whole(text) {
            // Values may contain commas.
            true => all.push(text.as_str()),
            false => all.extend(text.split(',')),
        }
    }
    all
}

impl Instructions {
    /// Returns the same lists for all users: one per condition in `texts`, or one without a condition if `texts` is empty.
    ///
    /// # Errors
    ///
    /// Those of [`resolve`].
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

    /// Reads table `instructions`, for a model that knows some conditions.
    ///
    /// # Errors
    ///
    /// The table is missing, cannot be read or has a column of another type.
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

    /// Returns the lists of a user at time `at` (epoch milliseconds). Skips instructions whose condition the model does not know
    /// or fewer than `min_pool` retrievable items carry at that time. A user without a usable instruction gets one list without a
    /// condition.
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
