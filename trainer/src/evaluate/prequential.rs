//! What is new, as targets: every event is predicted by a model that was there before it, and learned afterwards (prequential
//! evaluation: Dawid, 1984).

use std::collections::HashMap;

use super::EvaluateError;
use crate::checkpoint::Lineage;
use crate::data::{FreshSource, Sequences};

/// By position of `sequences`, whether it is new in `fresh`: each row of `refresh` is one of `sequences`, with another role
/// where nothing is new. Both have to be built from one version of `events`, and the model `name` before `fresh` begins.
pub(super) fn new_positions(
    sequences: &Sequences,
    (fresh, source): (&Sequences, &FreshSource),
    (name, lineage): (&str, &Lineage),
) -> Result<Vec<bool>, EvaluateError> {
    let other_build = || EvaluateError::OtherBuild {
        refresh: source.events_version.clone(),
        sequences: sequences.source.events_version.clone(),
        since: source.since_version.clone(),
    };
    if source.events_version != sequences.source.events_version {
        return Err(other_build());
    }
    let trained = lineage.fresh.as_ref().map(|fresh| &fresh.events_version);
    for trained in trained.into_iter().chain([&lineage.sequences.events_version]) {
        let versions = trained.parse::<u64>().ok().zip(source.since_version.parse::<u64>().ok());
        if versions.is_none_or(|(trained, since)| trained > since) {
            let (name, trained, since) = (name.into(), trained.clone(), source.since_version.clone());
            return Err(EvaluateError::Learned { name, trained, since });
        }
    }
    let mut rows_of: HashMap<&str, Vec<usize>> = HashMap::new();
    for (row, &user) in sequences.user.iter().enumerate() {
        rows_of.entry(&sequences.users[user as usize]).or_default().push(row);
    }
    let mut new = vec![false; sequences.items.len()];
    for (row, &user) in fresh.user.iter().enumerate() {
        let (positions, from) = (fresh.row(row), fresh.target_from[row]);
        let same = |&other: &usize| {
            let theirs = sequences.row(other);
            sequences.target_from[other] == from
                && sequences.ts[theirs.clone()] == fresh.ts[positions.clone()]
                && sequences.items[theirs] == fresh.items[positions.clone()]
        };
        let rows = rows_of.get(fresh.users[user as usize].as_str()).map_or(&[][..], Vec::as_slice);
        let row = rows.iter().copied().find(same).ok_or_else(other_build)?;
        for (place, role) in sequences.row(row).zip(&fresh.roles[positions.clone()]) {
            new[place] = *role != schemas::history::Role::Context;
        }
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use schemas::history::Role;

    use super::*;
    use crate::data::SequencesSource;

    /// A user's rows `0 1 2` and `1 2 | 3 4`, of which 2, 3 and 4 are new, and another user's.
    fn tables() -> (Sequences, Sequences) {
        let source = SequencesSource { events_version: "5".into(), ..SequencesSource::default() };
        let sequences = Sequences {
            offsets: vec![0, 3, 7, 8],
            items: vec![10, 11, 12, 11, 12, 13, 14, 10],
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
            ..Sequences::default()
        };
        let fresh = Sequences {
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
            ..Sequences::default()
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
            examples: Vec::new(),
            code_version: String::new(),
        }
    }

    fn source(events: &str, since: &str) -> FreshSource {
        FreshSource { refresh_version: 0, events_version: events.into(), since_version: since.into() }
    }

    #[test]
    fn what_is_new_is_found_in_the_whole_build() {
        let (sequences, fresh) = tables();
        let new = |source: &FreshSource, lineage: &Lineage, fresh: &Sequences| {
            new_positions(&sequences, (fresh, source), ("m", lineage))
        };
        let found = new(&source("5", "3"), &lineage("3", None), &fresh).unwrap();
        assert_eq!(found, [false, false, true, false, false, true, true, false]);
        // A refreshed model may have been refreshed up to where the new begins, and not further.
        assert!(new(&source("5", "3"), &lineage("1", Some("3")), &fresh).is_ok());
        for lineage in [lineage("1", Some("4")), lineage("4", None), lineage("", None)] {
            let error = new(&source("5", "3"), &lineage, &fresh).unwrap_err().to_string();
            assert!(error.contains("after version 3"), "{error}");
        }
        let error = new(&source("6", "3"), &lineage("3", None), &fresh).unwrap_err().to_string();
        assert!(error.contains("--since 3"), "{error}");
        let changed = Sequences { items: vec![9; 7], ..fresh.clone() };
        assert!(matches!(
            new(&source("5", "3"), &lineage("3", None), &changed),
            Err(EvaluateError::OtherBuild { .. })
        ));
    }
}
