//! A filter by the hash of one text column, which a Parquet scan evaluates before it decodes the other columns.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, BooleanArray};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::as_string_view_array;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use schemas::hash::hash64;

/// Whether rows with this [`hash64`] of the column are wanted.
pub(crate) type HashPredicate = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// The expression `wanted(hash64(column))`; the column has text views.
#[derive(Clone)]
pub(crate) struct HashFilter {
    column: Arc<dyn PhysicalExpr>,
    wanted: HashPredicate,
}

impl HashFilter {
    /// A filter that keeps the rows with a wanted value of `column`.
    pub(crate) fn new(column: Arc<dyn PhysicalExpr>, wanted: HashPredicate) -> Self {
        Self { column, wanted }
    }
}

impl PhysicalExpr for HashFilter {
    fn data_type(&self, _: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let texts = self.column.evaluate(batch)?.into_array(batch.num_rows())?;
        let texts = as_string_view_array(&texts)?;
        let rows = BooleanBuffer::collect_bool(texts.len(), |row| {
            texts.is_valid(row) && (self.wanted)(hash64(texts.value(row).as_bytes()))
        });
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::new(rows, None))))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.column]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), Arc::clone(&self.wanted))))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for HashFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wanted(hash64({}))", self.column)
    }
}

impl fmt::Debug for HashFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for HashFilter {
    fn eq(&self, other: &Self) -> bool {
        self.column.eq(&other.column) && Arc::ptr_eq(&self.wanted, &other.wanted)
    }
}

impl Eq for HashFilter {}

impl Hash for HashFilter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.column.hash(state);
        Arc::as_ptr(&self.wanted).cast::<()>().hash(state);
    }
}
