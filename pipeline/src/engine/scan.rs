//! Reads the shards of a snapshot with DataFusion.
//!
//! The scan reads exactly the shards that the table's log names at one version, never a directory, so it does not
//! see files of later commits or leftovers of unfinished ones. The plan consists of DataFusion's own operators, so it
//! can be sent to another process.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use schemas::hash::hash64;
use schemas::memory::MemorySize;
use store::{Shard, Snapshot};

use super::hash_filter::{HashFilter, HashPredicate};

/// Threads and memory of a run.
#[derive(Debug, Clone, Copy)]
pub struct Resources {
    /// Parallel streams.
    pub threads: usize,
    /// Bytes for everything that grows with the input. Data that does not fit is kept in files in
    /// [`terminal::scratch::directory`]. The program, readers and writers come on top: some 100 MiB.
    pub memory_bytes: usize,
}

impl Default for Resources {
    /// Every core, and half of the machine's memory.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let memory_bytes = usize::try_from(MemorySize::half_of_machine().bytes).unwrap_or(usize::MAX);
        Self { threads, memory_bytes }
    }
}

impl Resources {
    /// Every core, and this much memory.
    pub fn within(memory: MemorySize) -> Self {
        Self { memory_bytes: usize::try_from(memory.bytes).unwrap_or(usize::MAX), ..Self::default() }
    }

    /// Bytes for rows that wait to be sorted. More would not be faster: the system's page cache holds the latest writes.
    pub fn scatter_bytes(self) -> usize {
        (self.memory_bytes / 8).min(256 << 20)
    }

    /// Bytes for the search for duplicates.
    pub fn suspects_bytes(self) -> usize {
        (self.memory_bytes / 16).min(256 << 20)
    }

    /// Bytes for the pairs of users and items among which a k-core is searched.
    pub fn pairs_bytes(self) -> usize {
        (self.memory_bytes / 16).min(256 << 20)
    }

    /// Bytes for each of the buckets that are sorted at the same time.
    pub fn bucket_bytes(self) -> usize {
        self.memory_bytes / 8 * 3 / self.threads.max(1)
    }

    /// A DataFusion session with as many partitions as there are threads.
    pub fn session(self) -> SessionContext {
        SessionContext::new_with_config(self.session_config())
    }

    /// A session whose aggregations and sorts share the budget, and spill to temporary files beyond it.
    ///
    /// # Errors
    ///
    /// The directory for temporary files cannot be used.
    pub fn bounded_session(self) -> Result<SessionContext> {
        let pool = Arc::new(FairSpillPool::new(self.memory_bytes));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool);
        // In a configured directory, DataFusion creates a subdirectory at once; in the system's, only when it spills.
        let runtime = match terminal::scratch::configured() {
            Some(directory) => runtime.with_temp_file_path(directory),
            None => runtime,
        };
        let runtime = runtime.build_arc()?;
        // Memory that a sort reserves for merging its spilled runs.
        let reserved = (self.memory_bytes / 16 / self.threads.max(1)).min(10 << 20);
        let config = self.session_config().with_sort_spill_reservation_bytes(reserved);
        // Merging keeps one batch of each spilled run in memory, so batches are smaller.
        Ok(SessionContext::new_with_config_rt(config.with_batch_size(BATCH_ROWS / 4), runtime))
    }

    fn session_config(self) -> SessionConfig {
        SessionConfig::new().with_target_partitions(self.threads.max(1)).with_batch_size(BATCH_ROWS)
    }
}

/// Rows of a scanned batch; large, so that each of many buckets gets several rows of it.
const BATCH_ROWS: usize = 1 << 15;

/// Selects the rows whose text in `column` has a wanted hash. The scan must read the column as views.
pub(crate) struct RowsWith {
    pub(crate) column: &'static str,
    pub(crate) wanted: HashPredicate,
}

/// A snapshot as a DataFusion table.
#[derive(Debug, Clone)]
pub struct SnapshotTable {
    snapshot: Snapshot,
    files: TableSchema,
    shards: Vec<Shard>,
}

impl SnapshotTable {
    /// The shards of `snapshot`, read as `schema`; partition columns come last, whatever their position in `schema`.
    pub fn new(snapshot: Snapshot, schema: &Schema) -> Self {
        let partitions = snapshot.partition_columns();
        let (partition_fields, file_fields): (Vec<FieldRef>, Vec<FieldRef>) =
            schema.fields().iter().cloned().partition(|field| partitions.contains(field.name()));
        let files = TableSchema::builder(Arc::new(Schema::new(file_fields)));
        let files = files.with_table_partition_cols(partition_fields).build();
        Self { shards: snapshot.shards().to_vec(), snapshot, files }
    }

    /// Restricts queries of the table to the shards that `keep` selects.
    pub fn only(mut self, keep: impl Fn(&Shard) -> bool) -> Self {
        self.shards.retain(keep);
        self
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// A scan of `columns`, with one output partition for each of `groups`; a partition that has finished takes over shards
    /// from the others. Rows that `only` excludes are not decoded beyond its column; the scan may still return some of them.
    pub(crate) fn plan<'a>(
        &self,
        runtime: &RuntimeEnv,
        columns: &[&str],
        groups: impl IntoIterator<Item = Vec<&'a Shard>>,
        only: Option<&RowsWith>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.files.table_schema();
        let indexes =
            columns.iter().map(|name| Ok(schema.index_of(name)?)).collect::<Result<Vec<usize>>>()?;
        self.scan_columns(runtime, Some(indexes), groups, only)
    }

    fn scan_columns<'a>(
        &self,
        runtime: &RuntimeEnv,
        columns: Option<Vec<usize>>,
        groups: impl IntoIterator<Item = Vec<&'a Shard>>,
        only: Option<&RowsWith>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let store = self.snapshot.delta().object_store();
        // The store is rooted at the table's directory, so its URL must be unique for each table.
        let location = hash64(self.snapshot.directory().as_os_str().as_encoded_bytes());
        let url = ObjectStoreUrl::parse(format!("shards://{location:016x}"))?;
        runtime.register_object_store(url.as_ref(), store);
        let mut file_groups = Vec::new();
        for group in groups {
            let files = group.into_iter().map(|shard| self.file(shard)).collect::<Result<Vec<_>>>()?;
            file_groups.push(FileGroup::new(files));
        }
        // Columns of other types are cast to those of the schema (`crates/store/src/snapshot/shard.rs` does the same). 96-bit times
        // are read as milliseconds: nanoseconds overflow in the year 2262.
        let mut options = TableParquetOptions::default();
        options.global.coerce_int96 = Some("ms".into());
        options.global.coerce_int96_tz = Some("UTC".into());
        let mut source = ParquetSource::new(self.files.clone()).with_table_parquet_options(options);
        if let Some(RowsWith { column, wanted }) = only {
            let column = Column::new(column, self.files.table_schema().index_of(column)?);
            let filter = HashFilter::new(Arc::new(column), Arc::clone(wanted));
            source = source.with_predicate(Arc::new(filter)).with_pushdown_filters(true);
        }
        // A filter by hash cannot use statistics, so page indexes would be read in vain.
        let source = Arc::new(source.with_enable_page_index(false));
        let scan = FileScanConfigBuilder::new(url, source)
            .with_file_groups(file_groups)
            .with_projection_indices(columns)?
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }

    fn file(&self, shard: &Shard) -> Result<PartitionedFile> {
        let values = self
            .files
            .table_partition_cols()
            .iter()
            .map(|field| match shard.partition.get(field.name()).and_then(Option::as_ref) {
                Some(value) => ScalarValue::try_from_string(value.clone(), field.data_type()),
                None => ScalarValue::try_from(field.data_type()),
            })
            .collect::<Result<Vec<_>>>()?;
        let mut file = PartitionedFile::new("", shard.bytes).with_partition_values(values);
        file.object_meta.location = shard.location();
        Ok(file)
    }
}

#[async_trait]
impl TableProvider for SnapshotTable {
    fn schema(&self) -> SchemaRef {
        self.files.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let groups = balanced(self.shards.iter(), state.config().target_partitions());
        self.scan_columns(state.runtime_env(), projection.cloned(), groups, None)
    }
}

/// Divides shards into at most `count` runs of about equal bytes, in their order.
pub fn balanced<'a>(shards: impl Iterator<Item = &'a Shard> + Clone, count: usize) -> Vec<Vec<&'a Shard>> {
    let total: u64 = shards.clone().map(|shard| shard.bytes).sum();
    let share = total.div_ceil(count.max(1) as u64).max(1);
    let mut groups: Vec<Vec<&Shard>> = vec![Vec::new()];
    let mut filled = 0;
    for shard in shards {
        if filled >= share * groups.len() as u64 {
            groups.push(Vec::new());
        }
        filled += shard.bytes;
        if let Some(group) = groups.last_mut() {
            group.push(shard);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_dealt_in_order_and_by_size() {
        let shard = |bytes: u64| Shard { path: bytes.to_string(), bytes, rows: None, partition: [].into() };
        let shards = [shard(5), shard(1), shard(2), shard(2), shard(10)];
        let bytes = |groups: Vec<Vec<&Shard>>| -> Vec<Vec<u64>> {
            groups.iter().map(|g| g.iter().map(|s| s.bytes).collect()).collect()
        };
        assert_eq!(bytes(balanced(shards.iter(), 2)), [vec![5, 1, 2, 2], vec![10]]);
        assert_eq!(bytes(balanced(shards.iter(), 1)), [vec![5, 1, 2, 2, 10]]);
        assert_eq!(bytes(balanced([].iter(), 3)), [Vec::<u64>::new()]);
    }
}
