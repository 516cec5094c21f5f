//! Groups the shards that are merged.

use std::collections::BTreeMap;

use store::Shard;

/// A date, or a table without partitions, that has shards to merge.
#[derive(Debug)]
pub(super) struct Partition<'a> {
    /// Partition column → value.
    pub(super) values: Vec<(&'a str, &'a str)>,
    /// Groups of at least two shards; each group becomes one shard.
    pub(super) groups: Vec<Vec<&'a Shard>>,
}

impl<'a> Partition<'a> {
    pub(super) fn shards(&self) -> impl Iterator<Item = &'a Shard> {
        self.groups.iter().flatten().copied()
    }

    /// The date; empty for a table without partitions.
    pub(super) fn name(&self) -> &'a str {
        self.values.first().map_or("", |(_, value)| value)
    }
}

/// The partitions with shards to merge. In each, the smallest shards are merged first, in groups of at most `target`
/// bytes. After a run no two shards fit into one, apart from the bytes by which merged shards shrink.
pub(super) fn plan<'a>(shards: &'a [Shard], target: u64) -> Vec<Partition<'a>> {
    let mut partitions: BTreeMap<Vec<(&'a str, &'a str)>, Vec<&'a Shard>> = BTreeMap::new();
    for shard in shards.iter().filter(|shard| shard.bytes < target) {
        let value =
            |(column, value): (&'a String, &'a Option<String>)| Some((column.as_str(), value.as_deref()?));
        // This program writes no partition without a value.
        if let Some(values) = shard.partition.iter().map(value).collect() {
            partitions.entry(values).or_default().push(shard);
        }
    }
    let with_groups = |(values, shards)| Partition { values, groups: groups(shards, target) };
    partitions.into_iter().map(with_groups).filter(|partition| !partition.groups.is_empty()).collect()
}

fn groups(mut shards: Vec<&Shard>, target: u64) -> Vec<Vec<&Shard>> {
    shards.sort_by_key(|shard| (shard.bytes, &shard.path));
    let mut groups: Vec<Vec<&Shard>> = Vec::new();
    let mut bytes = u64::MAX;
    for shard in shards {
        bytes = bytes.saturating_add(shard.bytes);
        match groups.last_mut() {
            Some(group) if bytes <= target => group.push(shard),
            _ => {
                bytes = shard.bytes;
                groups.push(vec![shard]);
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shard(name: usize, date: Option<&str>, bytes: u64) -> Shard {
        let partition = [("event_date".to_owned(), date.map(Into::into))].into();
        Shard { path: name.to_string(), bytes, rows: None, partition }
    }

    #[test]
    fn small_shards_of_a_date_are_merged() {
        let of = [("a", 60), ("b", 10), ("a", 100), ("a", 20), ("a", 500), ("b", 128), ("a", 40)];
        let shards: Vec<_> = of.iter().enumerate().map(|(i, (date, n))| shard(i, Some(date), *n)).collect();
        let plan = plan(&shards, 128);
        assert_eq!(plan.len(), 1);
        assert_eq!((plan[0].name(), plan[0].groups.len()), ("a", 1));
        assert_eq!(plan[0].shards().map(|shard| shard.bytes).collect::<Vec<_>>(), [20, 40, 60]);
    }

    proptest! {
        #[test]
        fn what_fits_together_is_merged(sizes in prop::collection::vec((0u8..3, 0u64..200), 0..40), target in 1u64..300) {
            let shards: Vec<_> = sizes
                .iter()
                .enumerate()
                .map(|(i, (date, n))| shard(i, ["a", "b"].get(usize::from(*date)).copied(), *n))
                .collect();
            let plan = plan(&shards, target);
            let mut left: BTreeMap<String, u64> =
                shards.iter().filter(|s| s.partition["event_date"].is_some()).map(|s| (s.path.clone(), s.bytes)).collect();
            let date = |shard: &Shard| shard.partition["event_date"].clone();
            let mut sizes: BTreeMap<Option<String>, Vec<u64>> = BTreeMap::new();
            for group in plan.iter().flat_map(|partition| &partition.groups) {
                prop_assert!(group.len() > 1);
                prop_assert!(group.iter().all(|s| date(s) == date(group[0])));
                let bytes: u64 = group.iter().map(|s| s.bytes).sum();
                prop_assert!(bytes <= target);
                sizes.entry(date(group[0])).or_default().push(bytes);
                for shard in group {
                    prop_assert!(left.remove(&shard.path).is_some(), "each shard once");
                }
            }
            for shard in shards.iter().filter(|s| left.contains_key(&s.path)) {
                sizes.entry(date(shard)).or_default().push(shard.bytes);
            }
            // At most two shards of up to half the target remain in a date.
            for sizes in sizes.values_mut() {
                sizes.sort_unstable();
                let small = sizes.iter().filter(|&&n| 2 * n <= target).count();
                prop_assert!(small <= 2, "{sizes:?}");
            }
        }
    }
}
