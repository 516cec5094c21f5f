//! Reads files of any bytes and checks that every record is accounted for, whatever the block boundaries.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use schemas::config::{Dialect, Events, Format};
use schemas::memory::MemorySize;
use tempfile::NamedTempFile;

use super::counts::RecordCounts;
use super::error::SourceError;
use super::files::{ByteCount, InputFile, Packing, ReadOptions, Unpacking};
use super::formats::{Carry, Source};
use super::record::{Accepted, Raw};
use super::walk::{At, Visit};
use crate::records::{Fields, Forms, Mapping, Rejection};

const RECORD_BYTES_MAX: usize = 64;

thread_local! {
    /// Written for each input; lies in a memory-backed directory if the system has one.
    static FILE: RefCell<Option<NamedTempFile>> = const { RefCell::new(None) };
    static MAPPING: Mapping = Mapping::new(&Events::default());
}

struct Reader<'a>(&'a Mapping);

impl Visit for Reader<'_> {
    type Error = SourceError;

    fn record(&mut self, record: &impl Fields, _at: At) -> Result<Result<Accepted, Rejection>, SourceError> {
        Ok(self.0.event(record, &mut Forms::default()).map(|_| Accepted::New))
    }
}

/// Reads `bytes` as a file, in one piece and in pieces of a few bytes.
pub(crate) fn file(format: Format, bytes: &[u8]) {
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { NamedTempFile::new_in(memory) } else { NamedTempFile::new() };
            made.unwrap_or_else(|error| panic!("a temporary file: {error}"))
        });
        let write = |file: &File| file.set_len(0).and_then(|()| file.write_all_at(bytes, 0));
        write(file.as_file()).unwrap_or_else(|error| panic!("a temporary file: {error}"));
        let input = InputFile {
            source: file.path().display().to_string(),
            is_stdin: false,
            format,
            packing: Packing::Plain,
            dialect: Dialect::default(),
            partitions: Vec::new(),
            bytes: bytes.len() as u64,
        };
        let whole = read(&input, bytes.len().max(RECORD_BYTES_MAX) + 1);
        let cut = read(&input, 1 + bytes.first().map_or(0, |&byte| usize::from(byte) % 40));
        match (whole, cut) {
            (Ok(whole), Ok(cut)) => assert_eq!(whole, cut, "the blocks decide"),
            (Err(_), Err(_)) => {}
            // A JSON array is recognized by the first block alone, so the block size decides.
            (Err(error), Ok(_)) | (Ok(_), Err(error)) if error.contains("JSON array") => {}
            (whole, cut) => panic!("the blocks decide: {whole:?}, {cut:?}"),
        }
    });
}

/// The counts, and the rejected records with their reasons.
type Outcome = (RecordCounts, Vec<(Vec<u8>, String)>);

fn read(input: &InputFile, block_bytes: usize) -> Result<Outcome, String> {
    MAPPING.with(|mapping| {
        let reading = ReadOptions {
            max_record_bytes: RECORD_BYTES_MAX,
            block_bytes,
            unpacking: Unpacking { limit: MemorySize::bytes(1 << 20), directory: std::env::temp_dir() },
            check_times: false,
        };
        let mut source = Source::open(input, &mapping.wanted, &reading, &ByteCount::default())
            .map_err(|error| error.to_string())?;
        let (mut counts, mut rejected, mut carry) = (RecordCounts::default(), Vec::new(), Carry::default());
        while let Some(block) = source.next().map_err(|error| error.to_string())? {
            let block = carry.join(block);
            let walked = block.walk(None, &mut Reader(mapping)).map_err(|error| error.to_string())?;
            carry.keep(&block, &walked);
            counts.add(walked.counted.counts);
            for one in walked.counted.rejected {
                let raw = match one.raw {
                    Raw::Bytes(raw) => raw,
                    Raw::Again => Vec::new(),
                };
                assert!(raw.len() <= RECORD_BYTES_MAX, "{} bytes", raw.len());
                rejected.push((raw, one.rejection.message));
            }
        }
        assert!(counts.is_complete(), "{counts:?}");
        assert_eq!(counts.dead_letters, rejected.len() as u64);
        Ok((counts, rejected))
    })
}
