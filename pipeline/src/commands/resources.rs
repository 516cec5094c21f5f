//! Arguments for the memory and threads of a build.

use pipeline::engine::Resources;
use schemas::config::ConfigError;
use schemas::memory::MemorySize;

/// Minimum of --memory: below it, nearly every event would spill by itself, so a unit was surely forgotten.
const MEMORY_MIN: MemorySize = MemorySize::bytes(1 << 20);

#[derive(Debug, clap::Args)]
pub(crate) struct ResourceArgs {
    /// Memory for everything that grows with the log, such as 1GiB; the rest spills to temporary files (in `scratch` or TMPDIR).
    /// Default: half of the machine's.
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Parallel streams. Default: the machine's cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl ResourceArgs {
    pub(crate) fn resources(&self) -> Result<Resources, ConfigError> {
        let mut resources = Resources::default();
        if let Some(memory) = self.memory {
            if memory.bytes < MEMORY_MIN.bytes {
                let problem = format!("{memory} is too little for anything; give at least {MEMORY_MIN}");
                return Err(ConfigError::Invalid { key: "--memory".into(), problem });
            }
            resources.memory_bytes = usize::try_from(memory.bytes).unwrap_or(usize::MAX);
        }
        if let Some(threads) = self.threads {
            resources.threads = usize::from(threads);
        }
        Ok(resources)
    }
}
