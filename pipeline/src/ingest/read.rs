//! The interaction log, read by several threads and delivered in order.
//!
//! ```text
//!   files in order ─▶ blocks 0, 1, 2, … ─▶ threads: records ─▶ events as columns ─▶ in order again
//!    one thread reads       └──── no more on their way than permits ────┘        positions, the stage
//! ```
//!
//! Each block is taken apart as if a record began where it does. Where the block before shows that none does,
//! what it left over is put before the block and both are taken apart again: the result is that of reading
//! the file from its beginning, whatever the blocks and the threads.
//!
//! Memory: two blocks a thread and two more, as bytes and as columns.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{IngestError, build};
use super::files::{ByteCount, InputFile, Reading};
use super::record::{Kept, Records};
use super::source::{Block, Carry, Layout, Source, Visit, Walked};
use crate::forget::UserColumn;
use crate::records::{Batch, Columns, Mapping, Rejection};

/// What comes of reading, in the order of the files and their records.
pub(super) enum Delivered {
    /// Records of a file. Positions of the batch count from the first record of the block.
    Block { file: usize, walked: Walked, batch: Batch },
    /// The end of a file.
    End { file: usize },
}

/// The files to read, and how.
pub(super) struct Log<'a> {
    pub(super) files: &'a [InputFile],
    pub(super) mapping: &'a Mapping,
    pub(super) reading: Reading,
    pub(super) threads: usize,
    pub(super) count: &'a ByteCount,
}

/// A block on its way to a thread.
struct Job {
    at: u64,
    file: usize,
    layout: Arc<Layout>,
    block: Block,
}

/// A block that was taken apart.
struct Done {
    job: Job,
    walked: Walked,
    batch: Batch,
}

/// A block that was taken apart, or the end of a file.
enum Reply {
    Block(Box<Done>),
    End { file: usize },
}

/// With its number in the order of all blocks and ends; nothing where a thread has died.
type Message = Option<(u64, Result<Reply, IngestError>)>;

/// Sends the message of a dying thread, without which the others would wait for ever.
struct Alarm(Sender<Message>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(None);
        }
    }
}

impl Log<'_> {
    /// Reads all files. The first error in their order, or of `take`, ends it.
    pub(super) fn read(
        &self,
        mut take: impl FnMut(Delivered) -> Result<(), IngestError>,
    ) -> Result<(), IngestError> {
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
                let alarm = Alarm(replies.clone());
                scope.spawn(|| self.take_apart(&queue, alarm));
            }
            let alarm = Alarm(replies);
            scope.spawn(move || self.cut(&permitted, jobs, alarm));
            // With the permits and the receiver gone at its end, the threads end too.
            self.deliver(permits, delivered, &mut take)
        })
    }

    /// The thread that reads.
    fn cut(&self, permitted: &Receiver<()>, jobs: Sender<Job>, alarm: Alarm) {
        let mut at = 0;
        for (file, input) in self.files.iter().enumerate() {
            let mut source = match Source::open(input, &self.mapping.wanted, &self.reading, self.count) {
                Ok(source) => source,
                Err(error) => return drop(alarm.0.send(Some((at, Err(error))))),
            };
            loop {
                if permitted.recv().is_err() {
                    return;
                }
                let sent = match source.next() {
                    Ok(Some(block)) => {
                        jobs.send(Job { at, file, layout: source.layout.clone(), block }).is_ok()
                    }
                    Ok(None) => {
                        let sent = alarm.0.send(Some((at, Ok(Reply::End { file })))).is_ok();
                        at += 1;
                        if sent {
                            break;
                        }
                        false
                    }
                    Err(error) => return drop(alarm.0.send(Some((at, Err(error))))),
                };
                if !sent {
                    return;
                }
                at += 1;
            }
        }
    }

    /// The threads that take blocks apart.
    fn take_apart(&self, queue: &Mutex<Receiver<Job>>, alarm: Alarm) {
        let mut columns = Columns::new();
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            let at = job.at;
            let parsed = self.parse(&job, &mut columns);
            let reply = parsed.map(|(walked, batch)| Reply::Block(Box::new(Done { job, walked, batch })));
            if alarm.0.send(Some((at, reply))).is_err() {
                return;
            }
        }
    }

    fn parse(&self, job: &Job, columns: &mut Columns) -> Result<(Walked, Batch), IngestError> {
        let walked = job.layout.walk(&job.block, &mut Events { mapping: self.mapping, columns })?;
        Ok((walked, columns.finish(u32::try_from(job.file).unwrap_or(u32::MAX)).map_err(build)?))
    }

    fn deliver(
        &self,
        permits: SyncSender<()>,
        delivered: Receiver<Message>,
        take: &mut impl FnMut(Delivered) -> Result<(), IngestError>,
    ) -> Result<(), IngestError> {
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        let (mut carry, mut columns) = (Carry::default(), Columns::new());
        for message in delivered {
            let Some((at, reply)) = message else { break };
            waiting.insert(at, reply);
            while let Some(reply) = waiting.remove(&next) {
                next += 1;
                take(match reply? {
                    Reply::Block(done) => {
                        let Done { mut job, mut walked, mut batch } = *done;
                        if !carry.is_empty() {
                            job.block = carry.join(job.block);
                            (walked, batch) = self.parse(&job, &mut columns)?;
                        }
                        carry.keep(&job.block, &walked);
                        Delivered::Block { file: job.file, walked, batch }
                    }
                    Reply::End { file } => Delivered::End { file },
                })?;
                // Nobody wants it any more where the last file has been read.
                let _ = permits.send(());
            }
        }
        Ok(())
    }
}

/// Puts events into columns.
struct Events<'a> {
    mapping: &'a Mapping,
    columns: &'a mut Columns,
}

impl Visit for Events<'_> {
    fn record(&mut self, record: &impl Records, at: u64) -> Result<Result<Kept, Rejection>, IngestError> {
        match self.mapping.event(record) {
            Ok(event) => {
                self.columns.push(&event, i64::try_from(at).unwrap_or(i64::MAX)).map_err(build)?;
                Ok(Ok(Kept::Accepted))
            }
            Err(rejection) => Ok(Err(rejection)),
        }
    }

    fn says_nobody(&self, record: &impl Records) -> bool {
        self.mapping.says_nobody(record)
    }

    fn is_forgotten(&self, column: UserColumn, raw: &[u8]) -> bool {
        self.mapping.is_forgotten(column, None, raw)
    }
}
