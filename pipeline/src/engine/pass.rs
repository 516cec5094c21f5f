//! One DataFusion operator that runs every pass of this program.
//!
//! A [`Pass`] is a state machine over the batches of one partition. [`PassExec`] runs one for each partition
//! of its input, whatever operator produces it: a local sort, or the shuffle of a distributed engine.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{StreamExt, stream};

/// Work over the batches of one partition, in their order.
pub trait Pass: Send {
    /// Takes one batch; returns the finished output batches.
    ///
    /// # Errors
    ///
    /// A batch that the pass cannot process.
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>>;

    /// Returns the remaining output after the last batch.
    ///
    /// # Errors
    ///
    /// Rows that the pass cannot process.
    fn finish(&mut self) -> Result<Vec<RecordBatch>>;
}

/// Name, schema and constructor of a pass, for [`PassExec`].
pub trait PassSpec: fmt::Debug + Send + Sync + 'static {
    /// Name in plans.
    fn name(&self) -> &'static str;

    /// Columns of the output.
    fn schema(&self) -> SchemaRef;

    /// A fresh pass over one partition.
    fn start(&self) -> Box<dyn Pass>;
}

/// Runs a separate pass over every partition of `input`.
#[derive(Debug)]
pub struct PassExec<S> {
    spec: Arc<S>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl<S: PassSpec> PassExec<S> {
    /// `spec` over `input`.
    pub fn new(spec: Arc<S>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(spec.schema()),
            input.properties().output_partitioning().clone(),
            EmissionType::Incremental,
            input.properties().boundedness,
        ));
        Self { spec, input, properties }
    }
}

impl<S: PassSpec> DisplayAs for PassExec<S> {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec.name())
    }
}

impl<S: PassSpec> ExecutionPlan for PassExec<S> {
    fn name(&self) -> &str {
        self.spec.name()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(Arc::clone(&self.spec), children.swap_remove(0))))
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(Arc::clone(&self.spec), children.swap_remove(0))))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = Some(self.input.execute(partition, context)?);
        let state = Running { input, pass: self.spec.start(), ready: VecDeque::new() };
        let stream = stream::try_unfold(state, Running::next);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.spec.schema(), stream)))
    }
}

struct Running {
    input: Option<SendableRecordBatchStream>,
    pass: Box<dyn Pass>,
    ready: VecDeque<RecordBatch>,
}

impl Running {
    async fn next(mut self) -> Result<Option<(RecordBatch, Self)>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some((batch, self)));
            }
            let Some(input) = &mut self.input else {
                return Ok(None);
            };
            match input.next().await {
                Some(batch) => self.ready.extend(self.pass.push(&batch?)?),
                None => {
                    self.input = None;
                    self.ready.extend(self.pass.finish()?);
                }
            }
        }
    }
}
