//! The log: `events`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::prelude::SessionContext;
use schemas::delta::Snapshot;
use schemas::tables::{EVENTS, EVENTS_SCHEMA};
use serde::Serialize;

use super::distribution::Collector;
use super::{Distribution, InspectError, query};
use crate::scan::{Resources, SnapshotTable};

/// What the log holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventsContents {
    /// Rows.
    pub events: u64,
    /// Distinct users.
    pub users: u64,
    /// Distinct items.
    pub items: u64,
    /// Events with a logged request.
    pub with_request: u64,
    /// The first event.
    pub first: Option<DateTime<Utc>>,
    /// The last event.
    pub last: Option<DateTime<Utc>>,
    /// Events a day, over the days with any.
    pub per_day: Distribution,
    /// The day with the most events.
    pub busiest_day: Option<NaiveDate>,
    /// The most frequent actions.
    pub actions: Vec<Count>,
}

/// A value and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The value.
    pub value: String,
    /// How often.
    pub count: u64,
}

pub(super) async fn read(snapshot: Snapshot) -> Result<EventsContents, InspectError> {
    let fail = query(EVENTS);
    let context = Resources::default().session().map_err(&fail)?;
    let table = Arc::new(SnapshotTable::new(snapshot, &EVENTS_SCHEMA));
    context.register_table(EVENTS, table).map_err(&fail)?;

    let totals = rows(
        &context,
        "SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), count(request_id), \
         CAST(min(ts) AS BIGINT), CAST(max(ts) AS BIGINT) FROM events",
    );
    let totals = totals.await.map_err(&fail)?;
    let total = |column: usize| totals.first().map_or(0, |row| row.1[column]);
    let time = |ms| DateTime::from_timestamp_millis(ms).filter(|_| total(0) > 0);

    let mut per_day = Collector::default();
    let mut busiest: Option<(i64, i64)> = None;
    let days = "SELECT CAST(CAST(event_date AS INT) AS BIGINT), count(*) FROM events GROUP BY 1 ORDER BY 1";
    for (_, day) in rows(&context, days).await.map_err(&fail)? {
        per_day.add(day[1] as u64);
        if busiest.is_none_or(|(_, most)| day[1] > most) {
            busiest = Some((day[0], day[1]));
        }
    }
    let actions = "SELECT count(*) AS n, action FROM events GROUP BY action ORDER BY n DESC, action LIMIT 10";
    let actions = rows(&context, actions).await.map_err(&fail)?;
    Ok(EventsContents {
        events: total(0) as u64,
        users: total(1) as u64,
        items: total(2) as u64,
        with_request: total(3) as u64,
        first: time(total(4)),
        last: time(total(5)),
        per_day: per_day.finish(),
        busiest_day: busiest
            .and_then(|(day, _)| DateTime::UNIX_EPOCH.date_naive().checked_add_signed(TimeDelta::days(day))),
        actions: actions
            .into_iter()
            .map(|(text, numbers)| Count { value: text, count: numbers[0] as u64 })
            .collect(),
    })
}

/// The rows of a query: a text column, if there is one, and the numbers in front of it.
async fn rows(context: &SessionContext, sql: &str) -> datafusion::common::Result<Vec<(String, Vec<i64>)>> {
    let mut rows = Vec::new();
    for batch in context.sql(sql).await?.collect().await? {
        let (texts, numbers): (Vec<ArrayRef>, Vec<ArrayRef>) =
            batch.columns().iter().cloned().partition(|column| !column.data_type().is_integer());
        let texts: Vec<ArrayRef> =
            texts.iter().map(|c| cast(c, &DataType::Utf8)).collect::<Result<_, _>>()?;
        for row in 0..batch.num_rows() {
            let text = texts.first().map_or("", |column| column.as_string::<i32>().value(row));
            let numbers =
                numbers.iter().map(|column| column.as_primitive::<Int64Type>().value(row)).collect();
            rows.push((text.to_owned(), numbers));
        }
    }
    Ok(rows)
}
