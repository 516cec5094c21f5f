//! Checks that shards and log entries are unchanged, by their hashes in the log.

use store::{EntryState, Snapshot};

use super::TableProof;
use super::violation::{Stop, Violation};

const SHARDS: &str = "a shard has the bytes that were written";
const ENTRIES: &str = "an entry of the log has the actions that were written";

const NO_HASH: &str = "another program, or an earlier version of this one, wrote them without a hash";

/// Reads each shard, and each entry of the log that still exists.
pub(super) async fn verify(snapshot: &Snapshot, proof: &mut TableProof) -> Result<(), Stop> {
    let mut sound = 0;
    for version in (0..=snapshot.version()).rev() {
        match snapshot.entry_state(version).await? {
            Some(EntryState::Sound) => sound += 1,
            Some(EntryState::Damaged) => {
                let found = format!("another in version {version}");
                return Err(Violation::new(snapshot, ENTRIES, found, "what its hash says").into());
            }
            Some(EntryState::Unknown) => {}
            // Older entries were cleaned up.
            None => break,
        }
    }
    proof.holds(ENTRIES, sound, "entries");
    let shards = snapshot.shards();
    let mut hashed = 0;
    for (shard, written) in shards.iter().zip(snapshot.content_hashes()?) {
        let Some(written) = written else { continue };
        let found = snapshot.content_hash(shard).await?;
        if found != written {
            return Err(Violation::new(snapshot, SHARDS, found, written).shard(shard).into());
        }
        hashed += 1;
    }
    proof.holds(SHARDS, hashed, "shards");
    let without = shards.len() as u64 - hashed;
    if without > 0 {
        proof.no_claim(SHARDS, format!("{without} shards: {NO_HASH}"));
    }
    Ok(())
}
