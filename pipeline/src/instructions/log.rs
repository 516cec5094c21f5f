//! The queries on `events`.
//!
//! An event that is stored more than once counts once, as in `sequences`: a copy counts unless a smaller one, by
//! source, position and content, lies within `events.dedup_days`. The dates that the window touches and those around
//! them therefore suffice to decide on its events. Repeated ids are found first, by their hashes; nearly always there
//! are none, and then no copies are compared.
//!
//! Filters that need whole histories are queries on the whole log: the k-core is one query for each round.
//!
//! Memory: DataFusion's aggregations and sorts share the session's budget and spill; besides, 16 bytes for each
//! repeated event, each user to be computed again, and each item of a k-core.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, Int64Type, TimestampMillisecondType, UInt64Type};
use datafusion::common::Result;
use datafusion::common::cast::as_string_view_array;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use schemas::hash::hash64;
use schemas::history::AtMostOnce;
use schemas::tables::{EVENT_DATE, timestamp};
use store::{Shard, Snapshot};
use terminal::Progress;

use super::catalogue::Catalogue;
use super::rules::Rules;
use super::window::CountWindow;
use crate::engine::SnapshotTable;
use crate::histories::events_scan_schema;
use crate::records::{date_days, dates_around};

/// More days than any log has.
const DAYS_MAX: u32 = 1_000_000;

/// Hashes of users. Another user may share a hash; computing that user's row again changes nothing.
pub(super) type UserHashes = HashSet<u64, foldhash::fast::FixedState>;

/// Hashes of the ids that occur more than once.
pub(super) type RepeatedIds = HashSet<u64, foldhash::fast::FixedState>;

/// Hashes of items.
type ItemHashes = HashSet<u64, foldhash::fast::FixedState>;

/// Queries on `events` at one version.
pub(super) struct LogQueries<'a> {
    context: &'a SessionContext,
    events: &'a Snapshot,
    rules: &'a Rules,
}

impl<'a> LogQueries<'a> {
    /// Registers the functions that the queries use.
    pub(super) fn new(context: &'a SessionContext, events: &'a Snapshot, rules: &'a Rules) -> Self {
        register(context, "text_hash", &[DataType::Utf8View], DataType::UInt64, |columns| {
            let texts = as_string_view_array(&columns[0])?;
            Ok(Arc::new(texts.iter().map(|text| text.map(hash)).collect::<UInt64Array>()))
        });
        Self { context, events, rules }
    }

    /// The version that is read.
    pub(super) fn events(&self) -> &Snapshot {
        self.events
    }

    /// The time of the newest event, from the newest date; `None` without events.
    pub(super) async fn newest(&self) -> Result<Option<i64>> {
        if self.events.shards().is_empty() {
            return Ok(None);
        }
        let date = |shard: &Shard| shard.partition.get(EVENT_DATE).cloned().flatten();
        let newest = self.events.shards().iter().filter_map(date).max();
        self.register("newest", |shard| date(shard).is_none_or(|date| Some(date) == newest))?;
        let batches = self.context.sql("SELECT max(ts) FROM newest").await?.collect().await?;
        let times = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<TimestampMillisecondType>().iter().flatten());
        Ok(times.max())
    }

    /// Distinct users of the whole log. Reads one column of all dates.
    pub(super) async fn all_users(&self) -> Result<u64> {
        self.register("whole", |_| true)?;
        let query = "SELECT count(*) FROM (SELECT text_hash(user_id) FROM whole GROUP BY 1)";
        let batches = self.context.sql(query).await?.collect().await?;
        let counts = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values());
        Ok(counts.sum::<i64>().unsigned_abs())
    }

    /// The ids of the window's dates, and of those around them, that occur more than once.
    pub(super) async fn repeated(&self, window: CountWindow) -> Result<RepeatedIds> {
        let widened = window.widened(self.rules.dedup_days);
        self.register("dates", |shard| widened.touches(shard))?;
        let query =
            "SELECT id FROM (SELECT text_hash(event_id) AS id FROM dates) GROUP BY id HAVING count(*) > 1";
        let mut repeated = RepeatedIds::default();
        let mut batches = self.context.sql(query).await?.execute_stream().await?;
        while let Some(batch) = batches.next().await {
            repeated.extend(batch?.column(0).as_primitive::<UInt64Type>().values());
        }
        Ok(repeated)
    }

    /// Users whose instructions may differ from those of the window `before`, given the shards that were added
    /// since: users with a new event in the window, with an event of which a copy was added (another copy may
    /// count now), or with an event in only one of the windows.
    pub(super) async fn affected(
        &self,
        added: &HashSet<&str>,
        window: CountWindow,
        before: CountWindow,
        repeated: &Arc<RepeatedIds>,
    ) -> Result<UserHashes> {
        let is_new = |shard: &Shard| added.contains(shard.path.as_str()) && window.touches(shard);
        let wanted = self.wanted();
        let mut users = UserHashes::default();
        if self.register("added", is_new)? {
            let inside = within("added", window);
            self.collect(&mut users, &format!("SELECT user_id FROM added WHERE {inside} AND {wanted}"))
                .await?;
        }
        let widened = window.widened(self.rules.dedup_days);
        if !repeated.is_empty() {
            let shards = self.events.shards().iter();
            let new: BTreeSet<i32> = shards
                .filter(|shard| added.contains(shard.path.as_str()) && widened.touches(shard))
                .filter_map(date_of)
                .collect();
            let is_near = |date| new.range(dates_around(date, self.rules.dedup_days)).next().is_some();
            if self.register("copies", |shard| date_of(shard).is_none_or(is_near))? {
                self.is_repeated(Arc::clone(repeated));
                let copies = "SELECT user_id FROM copies WHERE is_repeated(text_hash(event_id))";
                self.collect(&mut users, copies).await?;
            }
        }
        for strip in window.strips(before) {
            if self.register("strip", |shard| strip.touches(shard))? {
                let inside = within("strip", strip);
                self.collect(&mut users, &format!("SELECT user_id FROM strip WHERE {inside} AND {wanted}"))
                    .await?;
            }
        }
        Ok(users)
    }

    async fn collect(&self, users: &mut UserHashes, query: &str) -> Result<()> {
        let query = format!("SELECT text_hash(user_id) AS hash FROM ({query}) GROUP BY 1");
        let mut batches = self.context.sql(&query).await?.execute_stream().await?;
        while let Some(batch) = batches.next().await {
            users.extend(batch?.column(0).as_primitive::<UInt64Type>().values());
        }
        Ok(())
    }

    /// `(user_id, code, events)` of the window, sorted by user: the number of a user's events with each code of the
    /// catalogue. Restricted to the `affected` users, if given.
    pub(super) async fn counts(
        &self,
        window: CountWindow,
        repeated: &Arc<RepeatedIds>,
        catalogue: &Arc<Catalogue>,
        affected: Option<&Arc<UserHashes>>,
        progress: &Arc<Mutex<Progress>>,
    ) -> Result<DataFrame> {
        let kept = self.kept(self.rules.read_window(window), repeated).await?;
        let catalogue = Arc::clone(catalogue);
        let progress = Arc::clone(progress);
        register(
            self.context,
            "code",
            &[DataType::Utf8View, timestamp()],
            DataType::UInt64,
            move |columns| {
                let items = as_string_view_array(&columns[0])?;
                let times = columns[1].as_primitive::<TimestampMillisecondType>();
                let codes = items.iter().zip(times.values());
                let codes = codes.map(|(item, &ts)| item.map_or(0, |item| catalogue.code(item, ts)));
                progress.lock().unwrap_or_else(PoisonError::into_inner).add(items.len() as u64);
                Ok(Arc::new(UInt64Array::from_iter_values(codes)))
            },
        );
        let of_affected = match affected {
            Some(users) => {
                is_affected(self.context, Arc::clone(users));
                " AND is_affected(user_id)"
            }
            None => "",
        };
        let inside = within("kept", window);
        self.context
            .sql(&format!(
                "SELECT user_id, code(item_id, ts) AS code, count(*) AS events FROM ({kept}) AS kept \
                 WHERE {inside}{of_affected} GROUP BY 1, 2 ORDER BY user_id"
            ))
            .await
    }

    /// A query of `(user_id, item_id, ts)`: the events of the window that the filters keep, each once.
    async fn kept(&self, window: CountWindow, repeated: &Arc<RepeatedIds>) -> Result<String> {
        // Copies outside the window decide whether those inside count.
        let days = if repeated.is_empty() { 0 } else { self.rules.dedup_days };
        self.register("log", |shard| window.widened(days).touches(shard))?;
        let filters = &self.rules.filters;
        let (value, order) = match filters.min_value {
            Some(_) => (", value", ", request_id NULLS FIRST, value NULLS FIRST"),
            None => ("", ""),
        };
        let columns = format!("user_id, item_id, ts, action{value}");
        // Copies are resolved before any other condition is applied: the first copy counts, or none.
        let once = if repeated.is_empty() {
            format!("SELECT {columns} FROM log")
        } else {
            self.is_repeated(Arc::clone(repeated));
            let days = days.min(DAYS_MAX);
            format!(
                "SELECT {columns} FROM log WHERE NOT is_repeated(text_hash(event_id)) \
                 UNION ALL SELECT {columns} FROM (SELECT {columns}, copy, min(copy) OVER (\
                     PARTITION BY event_id ORDER BY day RANGE BETWEEN {days} PRECEDING AND {days} FOLLOWING\
                 ) AS first FROM (SELECT {columns}, event_id, CAST(event_date AS INT) AS day, row_number() OVER (\
                     PARTITION BY event_id ORDER BY source, position, element, ts, user_id, item_id, action{order}\
                 ) AS copy FROM log WHERE is_repeated(text_hash(event_id)))) WHERE copy = first"
            )
        };
        let (inside, wanted) = (within("once", window), self.wanted());
        let mut kept =
            format!("SELECT user_id, item_id, ts FROM ({once}) AS once WHERE {inside} AND {wanted}");
        if let Some(keep) = filters.at_most_once {
            let ts = match keep {
                AtMostOnce::First => "min(ts)",
                AtMostOnce::Last => "max(ts)",
            };
            kept = format!("SELECT user_id, item_id, {ts} AS ts FROM ({kept}) AS every GROUP BY 1, 2");
        }
        if filters.min_item_events.is_some() {
            let (mut items, mut events) = (None, None);
            loop {
                let (found, left) = self.core_items(&kept, items.take()).await?;
                if events.replace(left) == Some(left) {
                    is_in_core(self.context, found);
                    break;
                }
                items = Some(found);
            }
            kept = format!("SELECT * FROM ({kept}) AS of_items WHERE is_in_core(text_hash(item_id))");
        }
        Ok(self.with_user_events(&kept))
    }

    /// Restricts a query of events to the users with enough of them.
    fn with_user_events(&self, events: &str) -> String {
        if self.rules.filters.min_user_events.is_none() {
            return events.to_owned();
        }
        let min = self.rules.filters.core_user_events();
        format!(
            "SELECT user_id, item_id, ts FROM (SELECT *, count(*) OVER (PARTITION BY user_id) AS of_user \
             FROM ({events}) AS of_users) WHERE of_user >= {min}"
        )
    }

    /// A round of the k-core: the hashes of the items that have enough events of users with enough events, and the sum of these
    /// events. Restricted to the `items` that the round before left. Two items are taken for one if their hashes are equal.
    async fn core_items(&self, kept: &str, items: Option<ItemHashes>) -> Result<(ItemHashes, u64)> {
        let left = match items {
            Some(items) => {
                is_in_core(self.context, items);
                format!("SELECT * FROM ({kept}) AS of_items WHERE is_in_core(text_hash(item_id))")
            }
            None => kept.to_owned(),
        };
        let min = self.rules.filters.core_item_events();
        let query = format!(
            "SELECT text_hash(item_id) AS item, count(*) AS events FROM ({}) AS left_over GROUP BY 1 \
             HAVING count(*) >= {min}",
            self.with_user_events(&left)
        );
        let (mut found, mut events) = (ItemHashes::default(), 0);
        let mut batches = self.context.sql(&query).await?.execute_stream().await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            found.extend(batch.column(0).as_primitive::<UInt64Type>().values());
            events += batch.column(1).as_primitive::<Int64Type>().values().iter().sum::<i64>() as u64;
        }
        Ok((found, events))
    }

    /// Registers the shards that `keep` selects as the table `name`; returns whether there are any.
    fn register(&self, name: &str, keep: impl Fn(&Shard) -> bool) -> Result<bool> {
        let table = SnapshotTable::new(self.events.clone(), &events_scan_schema()).only(&keep);
        self.context.deregister_table(name)?;
        self.context.register_table(name, Arc::new(table))?;
        Ok(self.events.shards().iter().any(keep))
    }

    fn is_repeated(&self, repeated: Arc<RepeatedIds>) {
        register(self.context, "is_repeated", &[DataType::UInt64], DataType::Boolean, move |columns| {
            let ids = columns[0].as_primitive::<UInt64Type>().values().iter();
            let found: Vec<bool> = ids.map(|id| repeated.contains(id)).collect();
            Ok(Arc::new(BooleanArray::from(found)))
        });
    }

    /// The condition that an event passes the filters that judge it by itself.
    fn wanted(&self) -> String {
        let filters = &self.rules.filters;
        let mut conditions = Vec::new();
        if !filters.actions.is_empty() {
            let quoted = |action: &String| format!("'{}'", action.replace('\'', "''"));
            let actions: Vec<String> = filters.actions.iter().map(quoted).collect();
            conditions.push(format!("action IN ({})", actions.join(", ")));
        }
        conditions.extend(filters.min_value.map(|min| format!("value >= CAST('{min:e}' AS DOUBLE)")));
        conditions.extend(filters.from_ms.map(|from| format!("CAST(ts AS BIGINT) >= {from}")));
        conditions.extend(filters.until_ms.map(|until| format!("CAST(ts AS BIGINT) < {until}")));
        if conditions.is_empty() { "true".into() } else { conditions.join(" AND ") }
    }
}

/// Registers the function `is_in_core(hash)`: whether an item's hash is among `items`.
fn is_in_core(context: &SessionContext, items: ItemHashes) {
    register(context, "is_in_core", &[DataType::UInt64], DataType::Boolean, move |columns| {
        let hashes = columns[0].as_primitive::<UInt64Type>().values().iter();
        let found: Vec<bool> = hashes.map(|hash| items.contains(hash)).collect();
        Ok(Arc::new(BooleanArray::from(found)))
    });
}

/// Registers the function `is_affected(user_id)`: whether the user is among `users`.
pub(super) fn is_affected(context: &SessionContext, users: Arc<UserHashes>) {
    register(context, "is_affected", &[DataType::Utf8View], DataType::Boolean, move |columns| {
        let names = as_string_view_array(&columns[0])?.iter();
        let found: Vec<bool> =
            names.map(|name| name.is_some_and(|name| users.contains(&hash(name)))).collect();
        Ok(Arc::new(BooleanArray::from(found)))
    });
}

fn date_of(shard: &Shard) -> Option<i32> {
    date_days(shard.partition.get(EVENT_DATE).and_then(Option::as_deref)?)
}

fn hash(text: &str) -> u64 {
    hash64(text.as_bytes())
}

/// The condition that an event of `table` lies in the window.
fn within(table: &str, CountWindow { from, to }: CountWindow) -> String {
    format!("CAST({table}.ts AS BIGINT) > {from} AND CAST({table}.ts AS BIGINT) <= {to}")
}

/// Registers a function of columns for queries; replaces an earlier one of the same name.
fn register(
    context: &SessionContext,
    name: &str,
    inputs: &[DataType],
    output: DataType,
    function: impl Fn(&[ArrayRef]) -> Result<ArrayRef> + Send + Sync + 'static,
) {
    let function = Arc::new(move |arguments: &[ColumnarValue]| {
        function(&ColumnarValue::values_to_arrays(arguments)?).map(ColumnarValue::Array)
    });
    context.register_udf(create_udf(name, inputs.to_vec(), output, Volatility::Immutable, function));
}
