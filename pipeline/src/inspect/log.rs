//! The log: `events`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::prelude::SessionContext;
use schemas::tables::{EVENTS, EVENTS_SCHEMA};
use serde::Serialize;
use store::Snapshot;

use super::distribution::{Collector, Distribution};
use super::error::{InspectError, query};
use super::popularity::{Popularity, popularity};
use crate::engine::{Resources, SnapshotTable};

/// Contents of `events`.
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
    /// The log from the first day to the last, in at most a few hundred periods of equal length.
    pub periods: Vec<Period>,
    /// The most frequent actions.
    pub actions: Vec<Count>,
    /// The distribution of the events over the items.
    pub popularity: Popularity,
}

/// The events of some consecutive days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Period {
    /// The first day.
    pub from: NaiveDate,
    /// Number of days.
    pub days: u32,
    /// Events on these days.
    pub events: u64,
}

/// A value and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The value.
    pub value: String,
    /// Number of occurrences.
    pub count: u64,
}

pub(super) async fn read(snapshot: Snapshot) -> Result<EventsContents, InspectError> {
    let fail = query(EVENTS);
    let context = Resources::default().session();
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
    let mut by_day = Vec::new();
    let days = "SELECT CAST(CAST(event_date AS INT) AS BIGINT), count(*) FROM events GROUP BY 1 ORDER BY 1";
    for (_, day) in rows(&context, days).await.map_err(&fail)? {
        per_day.add(day[1] as u64);
        by_day.push((day[0], day[1] as u64));
        if busiest.is_none_or(|(_, most)| day[1] > most) {
            busiest = Some((day[0], day[1]));
        }
    }
    let actions = "SELECT count(*) AS n, action FROM events GROUP BY action ORDER BY n DESC, action LIMIT 10";
    let actions = rows(&context, actions).await.map_err(&fail)?;
    let counts = "SELECT n, count(*) FROM (SELECT count(*) AS n FROM events GROUP BY item_id) \
         GROUP BY n ORDER BY n DESC";
    let counts = rows(&context, counts).await.map_err(&fail)?;
    let counts: Vec<(u64, u64)> = counts.iter().map(|(_, row)| (row[0] as u64, row[1] as u64)).collect();
    Ok(EventsContents {
        events: total(0) as u64,
        users: total(1) as u64,
        items: total(2) as u64,
        with_request: total(3) as u64,
        first: time(total(4)),
        last: time(total(5)),
        per_day: per_day.finish(),
        busiest_day: busiest.and_then(|(day, _)| date(day)),
        periods: periods(&by_day),
        popularity: popularity(&counts),
        actions: actions
            .into_iter()
            .map(|(text, numbers)| Count { value: text, count: numbers[0] as u64 })
            .collect(),
    })
}

fn date(days: i64) -> Option<NaiveDate> {
    DateTime::UNIX_EPOCH.date_naive().checked_add_signed(TimeDelta::try_days(days)?)
}

/// Sums days (since the epoch, ascending) to periods, which include days without events.
fn periods(by_day: &[(i64, u64)]) -> Vec<Period> {
    let (Some(&(first, _)), Some(&(last, _))) = (by_day.first(), by_day.last()) else { return Vec::new() };
    let span = last - first + 1;
    let days = [1, 7, 30, 90].into_iter().find(|days| span <= days * 100).unwrap_or(365);
    let mut periods: Vec<Period> = (0..(span + days - 1) / days)
        .filter_map(|p| Some(Period { from: date(first + p * days)?, days: days as u32, events: 0 }))
        .collect();
    for &(day, events) in by_day {
        if let Some(period) = periods.get_mut(((day - first) / days) as usize) {
            period.events += events;
        }
    }
    periods
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_cover_every_day_once() {
        let day = |day: i64| date(day).unwrap();
        let found = periods(&[(10, 1), (12, 2)]);
        let expected = [(10, 1), (11, 0), (12, 2)];
        assert_eq!(found, expected.map(|(d, events)| Period { from: day(d), days: 1, events }));
        let found = periods(&[(0, 1), (150, 2), (300, 3)]);
        assert_eq!((found.len(), found[0].days, found.last().unwrap().events), (43, 7, 3));
        assert_eq!(found.iter().map(|period| period.events).sum::<u64>(), 6);
        assert_eq!(periods(&[]), []);
    }
}
