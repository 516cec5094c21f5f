//! Prequential evaluation (Dawid, 1984): new events as targets, predicted by a model before it learns them.

use schemas::history::Role;

use super::EvaluateError;
use crate::checkpoint::Lineage;
use crate::data::{FreshSource, SequencesTable};

/// Returns, for each position of `sequences`, whether it is new in `fresh`. Each row of `refresh` is also a row of `sequences`;
/// its old positions have the role `Context`.
///
/// # Errors
///
/// The two tables come from different versions of `events` or their rows differ, or the model `name` may have learned events
/// after the version where `fresh` begins.
pub(super) fn new_positions(
    sequences: &SequencesTable,
    fresh: &SequencesTable,
    source: &FreshSource,
    name: &str,
    lineage: &Lineage,
) -> Result<Vec<bool>, EvaluateError> {
    let other_build = || EvaluateError::OtherBuild {
        refresh: source.events_version.clone(),
        sequences: sequences.source.events_version.clone(),
        since: source.since_version.clone(),
    };
    if source.events_version != sequences.source.events_version {
        return Err(other_build());
    }
    let learned = lineage.learned_events();
    if learned.zip(source.since_version.parse::<u64>().ok()).is_none_or(|(learned, since)| learned > since) {
        let learned = learned.map_or_else(|| "?".into(), |version| version.to_string());
        let (name, since) = (name.into(), source.since_version.clone());
        return Err(EvaluateError::Learned { name, trained: learned, since });
    }
    let mut new = vec![false; sequences.items.len()];
    for (row, same) in fresh.rows_in(sequences).into_iter().enumerate() {
        let same = same.ok_or_else(other_build)?;
        for (place, role) in sequences.row(same).zip(&fresh.roles[fresh.row(row)]) {
            new[place] = *role != Role::Context;
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{SequencesSource, ids};

    /// Rows `0 1 2` and `1 2 | 3 4` of one user, where 2, 3 and 4 are new, and one row of another user.
    fn tables() -> (SequencesTable, SequencesTable) {
        let source = SequencesSource { events_version: "5".into(), ..SequencesSource::default() };
        let sequences = SequencesTable {
            offsets: vec![0, 3, 7, 8],
            items: ids(&[10, 11, 12, 11, 12, 13, 14, 10]),
            ts: vec![0, 1, 2, 1, 2, 3, 4, 0],
            roles: [
                vec![Role::Pretrain; 3],
                vec![Role::Context; 2],
                vec![Role::Validation, Role::Test, Role::Pretrain],
            ]
            .concat(),
            target_from: vec![0, 2, 0],
            user: vec![0, 0, 1],
            users: vec!["u".into(), "v".into()],
            source: source.clone(),
            ..SequencesTable::default()
        };
        let fresh = SequencesTable {
            offsets: vec![0, 3, 7],
            items: sequences.items[..7].to_vec(),
            ts: sequences.ts[..7].to_vec(),
            roles: [
                vec![Role::Context, Role::Context, Role::Pretrain, Role::Context, Role::Context],
                vec![Role::Validation, Role::Test],
            ]
            .concat(),
            target_from: vec![0, 2],
            user: vec![0, 0],
            users: vec!["u".into()],
            source,
            ..SequencesTable::default()
        };
        (sequences, fresh)
    }

    fn lineage(events: &str, fresh: Option<&str>) -> Lineage {
        Lineage {
            sequences: SequencesSource { events_version: events.into(), ..SequencesSource::default() },
            items_version: 0,
            parent: None,
            parent_hash: None,
            fresh: fresh.map(|v| FreshSource { events_version: v.into(), ..FreshSource::default() }),
            inherited_events: None,
            taught_by: None,
            examples: Vec::new(),
            made_by: None,
            code_version: String::new(),
        }
    }

    fn source(events: &str, since: &str) -> FreshSource {
        FreshSource { refresh_version: 0, events_version: events.into(), since_version: since.into() }
    }

    #[test]
    fn what_is_new_is_found_in_the_whole_build() {
        let (sequences, fresh) = tables();
        let new = |source: &FreshSource, lineage: &Lineage, fresh: &SequencesTable| {
            new_positions(&sequences, fresh, source, "m", lineage)
        };
        let found = new(&source("5", "3"), &lineage("3", None), &fresh).unwrap();
        assert_eq!(found, [false, false, true, false, false, true, true, false]);
        // A model refreshed exactly up to version `since` is accepted.
        assert!(new(&source("5", "3"), &lineage("1", Some("3")), &fresh).is_ok());
        let taught = Lineage { inherited_events: Some(4), ..lineage("1", None) };
        for lineage in [lineage("1", Some("4")), lineage("4", None), lineage("", None), taught] {
            let error = new(&source("5", "3"), &lineage, &fresh).unwrap_err().to_string();
            assert!(error.contains("after version 3"), "{error}");
        }
        let error = new(&source("6", "3"), &lineage("3", None), &fresh).unwrap_err().to_string();
        assert!(error.contains("--since 3"), "{error}");
        let changed = SequencesTable { items: ids(&[9; 7]), ..fresh.clone() };
        assert!(matches!(
            new(&source("5", "3"), &lineage("3", None), &changed),
            Err(EvaluateError::OtherBuild { .. })
        ));
    }
}
