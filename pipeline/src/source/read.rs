//! Reads the interaction log with several threads and delivers it in order.
//!
//! ```text
//!   files in order ─▶ blocks 0, 1, 2, … ─▶ threads: records ─▶ events as columns ─▶ in order again
//!    one thread reads       └──── no more on their way than permits ────┘        positions, the stage
//! ```
//!
//! Each block is parsed as if a record began at its first byte. If the previous block ends inside a record, the beginning
//! of that record is put before the block and the block is parsed again: the result equals that of reading the file from
//! its beginning, whatever the blocks and the threads.
//!
//! Memory: two blocks a thread and two more, as bytes and as columns.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use super::error::SourceError;
use super::files::{ByteCount, InputFile, ReadOptions};
use super::formats::{Block, Carry, Source, Walked};
use super::record::{Accepted, Records};
use super::walk::{At, Visit};
use crate::privacy::UserColumn;
use crate::records::{Columns, EventBatch, Fields, Forms, Mapping, OrdinaryRows, Place, Rejection};

/// Results of reading, in the order of the files and their records.
pub(crate) enum Delivered {
    /// Records of a file. Positions of the batch count from the first record of the block.
    Block { file: usize, walked: Box<Walked>, batch: EventBatch, forms: Forms },
    /// The end of a file.
    End { file: usize },
}

/// The files to read, and how.
pub(crate) struct LogReader<'a> {
    pub(crate) files: &'a [InputFile],
    pub(crate) mapping: &'a Mapping,
    pub(crate) reading: ReadOptions,
    pub(crate) threads: usize,
    pub(crate) count: &'a ByteCount,
}

/// A block on its way to a thread.
struct Job {
    at: u64,
    file: usize,
    block: Block,
}

/// A block that was parsed.
struct Done {
    job: Job,
    parsed: Parsed,
}

/// The records of a block: what came of them, the events among them, and how their times are written.
struct Parsed {
    walked: Walked,
    batch: EventBatch,
    forms: Forms,
}

/// A block that was parsed, or the end of a file.
enum Reply {
    Block(Box<Done>),
    End { file: usize },
}

/// A reply with its number in the order of all blocks and ends; `None` if a thread has panicked.
type NumberedReply = Option<(u64, Result<Reply, SourceError>)>;

/// A thread's sender of replies. If its thread panics, it tells the receiver, which would otherwise wait forever.
struct ReplySender(Sender<NumberedReply>);

impl Drop for ReplySender {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(None);
        }
    }
}

impl LogReader<'_> {
    /// Reads all files and passes their blocks and ends to `take`. Stops at the first error, in the order of the files, of
    /// reading or of `take`.
    pub(crate) fn read<E: From<SourceError>>(
        &self,
        mut take: impl FnMut(Delivered) -> Result<(), E>,
    ) -> Result<(), E> {
        let threads = self.threads.max(1);
        let permits_max = 2 * threads + 2;
        let (permits, permitted) = sync_channel(permits_max);
        for _ in 0..permits_max {
            let _ = permits.send(());
        }
        let (jobs, queue) = channel();
        let queue = Mutex::new(queue);
        let (replies, delivered) = channel();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let replies = ReplySender(replies.clone());
                scope.spawn(|| self.parse_blocks(&queue, replies));
            }
            let replies = ReplySender(replies);
            scope.spawn(move || self.read_blocks(&permitted, jobs, replies));
            // `deliver` drops the permits and the receiver at its end, which ends the threads.
            self.deliver(permits, delivered, &mut take)
        })
    }

    /// Reads the files, on a thread of its own.
    fn read_blocks(&self, permitted: &Receiver<()>, jobs: Sender<Job>, replies: ReplySender) {
        let mut at = 0;
        for (file, input) in self.files.iter().enumerate() {
            let mut source = match Source::open(input, &self.mapping.wanted, &self.reading, self.count) {
                Ok(source) => source,
                Err(error) => return drop(replies.0.send(Some((at, Err(error))))),
            };
            loop {
                if permitted.recv().is_err() {
                    return;
                }
                let sent = match source.next() {
                    Ok(Some(block)) => jobs.send(Job { at, file, block }).is_ok(),
                    Ok(None) => {
                        let sent = replies.0.send(Some((at, Ok(Reply::End { file })))).is_ok();
                        at += 1;
                        if sent {
                            break;
                        }
                        false
                    }
                    Err(error) => return drop(replies.0.send(Some((at, Err(error))))),
                };
                if !sent {
                    return;
                }
                at += 1;
            }
        }
    }

    /// Parses blocks, on several threads.
    fn parse_blocks(&self, queue: &Mutex<Receiver<Job>>, replies: ReplySender) {
        let mut columns = Columns::new();
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            let at = job.at;
            let parsed = self.parse(&job, &mut columns);
            let reply = parsed.map(|parsed| Reply::Block(Box::new(Done { job, parsed })));
            if replies.0.send(Some((at, reply))).is_err() {
                return;
            }
        }
    }

    fn parse(&self, job: &Job, columns: &mut Columns) -> Result<Parsed, SourceError> {
        let mut visitor = EventVisitor { mapping: self.mapping, columns, forms: Forms::default() };
        let walked = job.block.walk(self.mapping.exploding(), &mut visitor)?;
        let forms = visitor.forms;
        let batch =
            columns.finish(u32::try_from(job.file).unwrap_or(u32::MAX)).map_err(SourceError::Columns)?;
        Ok(Parsed { walked, batch, forms })
    }

    fn deliver<E: From<SourceError>>(
        &self,
        permits: SyncSender<()>,
        delivered: Receiver<NumberedReply>,
        take: &mut impl FnMut(Delivered) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        let (mut carry, mut columns) = (Carry::default(), Columns::new());
        for message in delivered {
            let Some((at, reply)) = message else { break };
            waiting.insert(at, reply);
            while let Some(reply) = waiting.remove(&next) {
                next += 1;
                take(match reply? {
                    Reply::Block(done) => {
                        let Done { mut job, mut parsed } = *done;
                        if !carry.is_empty() {
                            job.block = carry.join(job.block);
                            parsed = self.parse(&job, &mut columns)?;
                        }
                        let Parsed { walked, batch, forms } = parsed;
                        carry.keep(&job.block, &walked);
                        Delivered::Block { file: job.file, walked: Box::new(walked), batch, forms }
                    }
                    Reply::End { file } => Delivered::End { file },
                })?;
                // Fails after the last file has been read: the reading thread has ended.
                let _ = permits.send(());
            }
        }
        Ok(())
    }
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn place(at: At) -> Place {
    Place {
        position: number(at.record),
        element: at.element.map(|element| i32::try_from(element).unwrap_or(i32::MAX)),
        place: number(at.place),
    }
}

/// Appends events to columns.
struct EventVisitor<'a> {
    mapping: &'a Mapping,
    columns: &'a mut Columns,
    forms: Forms,
}

impl Visit for EventVisitor<'_> {
    type Error = SourceError;

    fn record(&mut self, record: &impl Fields, at: At) -> Result<Result<Accepted, Rejection>, SourceError> {
        match self.mapping.event(record, &mut self.forms) {
            Ok(event) => {
                self.columns.push(&event, place(at)).map_err(SourceError::Columns)?;
                Ok(Ok(Accepted::New))
            }
            Err(rejection) => Ok(Err(rejection)),
        }
    }

    fn ordinary(&self, records: &impl Records) -> Option<OrdinaryRows> {
        self.mapping.ordinary(records.rows()?, |slot| records.vector(slot))
    }

    fn rows(&mut self, from: &OrdinaryRows, rows: Range<usize>, at: At) -> Result<(), SourceError> {
        from.count_forms(rows.clone(), &mut self.forms);
        self.columns.extend(from, rows, number(at.record)).map_err(SourceError::Columns)
    }

    fn user_unreadable(&self, record: &impl Fields) -> bool {
        self.mapping.user_unreadable(record)
    }

    fn is_forgotten(&self, column: UserColumn, raw: &[u8]) -> bool {
        self.mapping.is_forgotten(column, None, raw)
    }
}

#[cfg(test)]
mod tests;
