//! Finds ids that occur more than once within a window of days, among any number of ids in bounded memory.
//!
//! 8 bytes an event are collected: its date and 48 bits of the hash of its id. They are partitioned by hash; partitions
//! are searched one by one, and spill to a scratch file beyond their share of the memory. Two events with one hash and
//! dates within the window are suspects; the caller compares the ids themselves. Nearly always there are none.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::{DataFusionError, Result};
use schemas::hash::mix64;

use super::scratch::{Scratch, ScratchChunk};

/// Minimum partitions; more if a partition would otherwise outgrow a core's cache.
const PARTITIONS_MIN: usize = 256;
const PARTITION_EVENTS: u64 = 1 << 17;
/// Numbers that a stream buffers for all partitions together: 1 MiB.
const BUFFERED: usize = 1 << 17;

/// The bits of a suspect that hold the hash.
const HASH: u64 = (1 << 48) - 1;

/// An event's date and id in 64 bits: the date's low 16 bits and 48 of the hash.
pub(crate) fn suspect(date: i32, event: u64) -> u64 {
    (u64::from(date as u16) << 48) | (event >> 16)
}

/// The hash in a suspect.
pub(crate) fn hash_in(suspect: u64) -> u64 {
    suspect & HASH
}

/// The low bits of the date in a suspect.
pub(crate) fn date_in(suspect: u64) -> u16 {
    (suspect >> 48) as u16
}

/// Collects the dates and ids of all events, and finds equal ids.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// The allowed distances, in days, between the dates of two suspects.
    apart: RangeInclusive<u16>,
    /// Maximum numbers of a partition in memory.
    share: usize,
    scratch: Scratch,
    partitions: Vec<Mutex<Partition>>,
}

#[derive(Debug, Default)]
struct Partition {
    held: Vec<u64>,
    chunks: Vec<ScratchChunk>,
}

impl Suspects {
    /// Empty; for about `events` events, in about `memory_bytes` of memory. Two events of one id are suspects if the distance
    /// of their dates, in days, lies in `apart`.
    pub(crate) fn new(events: u64, memory_bytes: usize, apart: RangeInclusive<u32>) -> Self {
        let count = usize::try_from((events / PARTITION_EVENTS).next_power_of_two()).unwrap_or(usize::MAX);
        let count = count.clamp(PARTITIONS_MIN, 1 << 14);
        let partitions = (0..count).map(|_| Mutex::default()).collect();
        let days = |days: u32| u16::try_from(days).unwrap_or(u16::MAX);
        let apart = days(*apart.start())..=days(*apart.end());
        Self { apart, share: memory_bytes / 8 / count, scratch: Scratch::new(1), partitions }
    }

    fn add(&self, partition: usize, buffer: &mut Vec<u64>) -> Result<()> {
        let mut to = self.partitions[partition].lock().unwrap_or_else(PoisonError::into_inner);
        to.held.append(buffer);
        if to.held.len() > self.share {
            let bytes: Vec<u8> = to.held.drain(..).flat_map(u64::to_le_bytes).collect();
            let chunk = self.scratch.append(&[&bytes])?;
            to.chunks.push(chunk);
        }
        Ok(())
    }

    /// The suspects of one partition; empties it.
    fn of_partition(&self, partition: usize) -> Result<Repeats> {
        let Partition { mut held, chunks } =
            std::mem::take(&mut *self.partitions[partition].lock().unwrap_or_else(PoisonError::into_inner));
        for chunk in chunks {
            let bytes = self.scratch.read(chunk)?;
            held.extend(bytes.as_chunks().0.iter().map(|&number| u64::from_le_bytes(number)));
        }
        Ok(repeats(&held, &self.apart))
    }

    /// All suspects, found by `threads` at once.
    pub(crate) fn find(&self, threads: usize) -> Result<HashSet<u64>> {
        let Found { mut apart, same } = self.find_apart(threads, usize::MAX)?;
        apart.extend(same.unwrap_or_default());
        Ok(apart)
    }

    /// All suspects, found by `threads` at once: those of several dates, and up to about `same_max` of one date.
    pub(crate) fn find_apart(&self, threads: usize, same_max: usize) -> Result<Found> {
        let threads = threads.clamp(1, self.partitions.len());
        let same = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let found: Vec<_> = (0..threads)
                .map(|thread| {
                    let same = &same;
                    scope.spawn(move || {
                        let mut repeats = Repeats::default();
                        for partition in (thread..self.partitions.len()).step_by(threads) {
                            let of_partition = self.of_partition(partition)?;
                            repeats.apart.extend(of_partition.apart);
                            let before = same.fetch_add(of_partition.same.len(), Ordering::Relaxed);
                            if before <= same_max {
                                repeats.same.extend(of_partition.same);
                            }
                        }
                        Ok::<_, DataFusionError>(repeats)
                    })
                })
                .collect();
            let mut all = Found { apart: HashSet::new(), same: Some(Vec::new()) };
            for part in found {
                let part =
                    part.join().map_err(|_| DataFusionError::Internal("a thread panicked".into()))??;
                all.apart.extend(part.apart);
                all.same.iter_mut().for_each(|same| same.extend(&part.same));
            }
            all.same = all.same.filter(|_| same.load(Ordering::Relaxed) <= same_max);
            Ok(all)
        })
    }

    /// Bytes that went to the scratch file.
    #[cfg(test)]
    fn spilled_bytes(&self) -> u64 {
        self.scratch.bytes()
    }
}

/// Suspects, whose hashes are random already.
pub(crate) type SuspectSet = HashSet<u64, BuildHasherDefault<SuspectHasher>>;

/// Takes a suspect's bits as its hash.
#[derive(Debug, Default)]
pub(crate) struct SuspectHasher(u64);

impl Hasher for SuspectHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, suspect: u64) {
        self.0 = suspect;
    }

    fn finish(&self) -> u64 {
        // The low bits are equal within a partition, and the high ones are the date: a set wants both to vary.
        mix64(self.0, self.0 >> 16)
    }
}

/// All suspects.
pub(crate) struct Found {
    /// Those whose dates differ.
    pub(crate) apart: HashSet<u64>,
    /// Those of one date, each once; `None` if there were too many.
    pub(crate) same: Option<Vec<u64>>,
}

/// Numbers whose hash occurs again.
#[derive(Debug, Default)]
struct Repeats {
    /// On another date.
    apart: Vec<u64>,
    /// On the same date.
    same: Vec<u64>,
}

/// The numbers whose hash occurs again at an allowed distance of dates. Equal hashes meet in an open-addressing hash table:
/// a partition's table fits into a core's cache, and takes a fraction of the time of a sort.
fn repeats(numbers: &[u64], apart: &RangeInclusive<u16>) -> Repeats {
    const FREE: u64 = 0;
    let size = (numbers.len() * 2).next_power_of_two();
    let mut table = vec![FREE; size];
    let mut repeats = Repeats::default();
    let near = |one: u64, other: u64| {
        let ahead = date_in(one).wrapping_sub(date_in(other));
        apart.contains(&ahead.min(ahead.wrapping_neg()))
    };
    // Whether the number equal to `FREE` has occurred.
    let mut free_met = false;
    for &number in numbers {
        // The low bits select the partition, and the high bits are the date.
        let mut place = (number >> 16) as usize & (u32::MAX as usize) & (size - 1);
        let mut again = number == FREE && std::mem::replace(&mut free_met, true);
        if free_met && number != FREE && hash_in(number) == hash_in(FREE) && near(number, FREE) {
            repeats.apart.extend([number, FREE]);
        }
        while table[place] != FREE && !again {
            let other = table[place];
            if hash_in(other) == hash_in(number) {
                again = other == number;
                if !again && near(other, number) {
                    repeats.apart.extend([other, number]);
                }
            }
            place = (place + 1) & (size - 1);
        }
        if again && apart.contains(&0) {
            repeats.same.push(number);
        }
        if !again {
            table[place] = number;
        }
    }
    for numbers in [&mut repeats.apart, &mut repeats.same] {
        numbers.sort_unstable();
        numbers.dedup();
    }
    repeats
}

/// One stream's buffers for [`Suspects`], one a partition.
#[derive(Debug)]
pub(crate) struct PartitionBuffers {
    all: Arc<Suspects>,
    buffers: Vec<Vec<u64>>,
    /// Numbers in a full buffer.
    full: usize,
}

impl PartitionBuffers {
    /// Empty buffers of a stream.
    pub(crate) fn new(all: Arc<Suspects>) -> Self {
        let count = all.partitions.len();
        Self { all, buffers: vec![Vec::new(); count], full: BUFFERED / count }
    }

    /// Adds an event of `date` with the hash of its id.
    pub(crate) fn push(&mut self, date: i32, event: u64) -> Result<()> {
        let suspect = suspect(date, event);
        // The number of partitions is a power of two.
        let partition = suspect as usize & (self.buffers.len() - 1);
        let buffer = &mut self.buffers[partition];
        buffer.push(suspect);
        if buffer.len() < self.full { Ok(()) } else { self.all.add(partition, buffer) }
    }

    /// Moves the remaining numbers to the partitions.
    pub(crate) fn finish(&mut self) -> Result<()> {
        for (partition, buffer) in self.buffers.iter_mut().enumerate() {
            self.all.add(partition, buffer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use schemas::hash::hash64;

    use super::*;

    #[test]
    fn equal_ids_of_near_dates_are_suspects_in_memory_and_beyond() {
        for (events, memory) in [(0, 8 << 20), (0, 0), (1 << 40, 0)] {
            for apart in [0..=0, 0..=1, 1..=2] {
                let all = Arc::new(Suspects::new(events, memory, apart.clone()));
                let mut streams =
                    [PartitionBuffers::new(Arc::clone(&all)), PartitionBuffers::new(Arc::clone(&all))];
                for n in 0..50_000u64 {
                    streams[n as usize % 2].push(-3, hash64(&n.to_le_bytes())).unwrap();
                }
                // Again on the same date, on the next one, on the one after that, and much later.
                let again = [(-3, 7u64), (-2, 8), (-1, 9), (20, 10), (-3, 7)];
                for (date, n) in again {
                    streams[1].push(date, hash64(&n.to_le_bytes())).unwrap();
                }
                streams.iter_mut().for_each(|stream| stream.finish().unwrap());
                let near = again.into_iter().filter(|(date, _)| apart.contains(&date.abs_diff(-3)));
                let of = |date, n: u64| suspect(date, hash64(&n.to_le_bytes()));
                let expected: HashSet<u64> = near.flat_map(|(date, n)| [of(date, n), of(-3, n)]).collect();
                assert_eq!(all.spilled_bytes() > 0, memory == 0);
                assert_eq!(all.find(3).unwrap(), expected, "{apart:?}");
                assert_eq!(all.find_apart(3, 1).unwrap().same, Some(Vec::new()), "emptied");
            }
        }
    }

    proptest! {
        #[test]
        fn repeats_are_what_all_pairs_say(
            // Few hashes and few dates, some of them around zero; the number 0 is among them.
            drawn in prop::collection::vec((0u64..12, 0u16..6, any::<bool>()), 0..120),
            from in 0u16..2,
            days in 0u16..4,
        ) {
            let numbers: Vec<u64> = drawn
                .into_iter()
                .map(|(hash, date, negative)| {
                    let date = if negative { date.wrapping_neg() } else { date };
                    (u64::from(date) << 48) | (hash << 20)
                })
                .collect();
            let apart = from..=days;
            let (mut expected, mut same) = (BTreeSet::new(), BTreeSet::new());
            for (n, &one) in numbers.iter().enumerate() {
                for &other in &numbers[..n] {
                    let days = (date_in(one) as i16).abs_diff(date_in(other) as i16);
                    if hash_in(one) == hash_in(other) && apart.contains(&days) {
                        if days == 0 { &mut same } else { &mut expected }.extend([one, other]);
                    }
                }
            }
            let found = repeats(&numbers, &apart);
            prop_assert_eq!(found.apart, expected.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(found.same, same.into_iter().collect::<Vec<_>>());
        }
    }
}
