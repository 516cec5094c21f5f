//! `trainer export`: parses its arguments, calls `trainer::export` and prints the result.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, Interrupt, print_json};
use trainer::export;

/// Export a model for other systems: weights, item vectors and an ONNX graph for serving.
///
/// Writes to DIR: model.safetensors (weights), item_vectors.npy and item_vectors.parquet (for FAISS, DuckDB, …), model.onnx (one
/// user's history and conditions in, hidden states and scores of all items out), conditions.json (the condition of each row) and
/// manifest.json (inputs of the graph, lineage of the model, sizes and hashes). Replaces an older export in DIR as a whole;
/// refuses any other non-empty directory.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  trainer export --config config/movielens.toml --model base --out exported\n  \
                        python3 -c 'import onnxruntime as o; print(o.InferenceSession(\"exported/model.onnx\").run(\n    \
                        [\"scores\"], {\"history\": [1, 2], \"times\": [0, 60000]}))'"
)]
pub(crate) struct ExportArgs {
    /// Name of the model. Default: the published one, named in models/published.json.
    #[arg(long)]
    model: Option<String>,
    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ExportArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let interrupt = Interrupt::on_signal();
        let report =
            export::run(&root, &super::or_served(&root, self.model.as_deref())?, &self.out, &interrupt)
                .await?;
        eprint!("{report}");
        if common.json {
            print_json(&report)?;
        }
        Ok(EXIT_DONE)
    }
}
