//! A fixed-size map from the metrics of [`METRICS`] to values.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{AddAssign, Index};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeMap as _, Serializer};
use serde::{Deserialize, Serialize};

use super::metrics::{ALL, Key, METRICS, Metric, OF_RANKS};

/// Values of the first `N` metrics of [`METRICS`], in table order; by default the metrics of ranks.
///
/// Serialized as a map by [`Metric::column`]. Deserializing gives `None` for a missing key, such as a metric added later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerMetric<T, const N: usize = OF_RANKS>([T; N]);

impl<T, const N: usize> PerMetric<T, N> {
    /// Builds the values by calling `f` for each metric.
    pub fn from_fn(mut f: impl FnMut(Key) -> T) -> Self {
        Self(std::array::from_fn(|i| f(Key(i))))
    }

    /// Iterates over the metrics and their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Metric, &T)> {
        METRICS.iter().zip(&self.0)
    }

    /// Returns the values, in table order.
    pub fn values(&self) -> &[T; N] {
        &self.0
    }

    /// Applies `f` to each value.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> PerMetric<U, N> {
        PerMetric(self.0.map(f))
    }
}

impl<T> PerMetric<Option<T>> {
    /// Extends the values to all metrics; those that need a condition are `None`.
    pub(super) fn without_condition(self) -> PerMetric<Option<T>, ALL> {
        let mut values = self.0.into_iter().flatten();
        PerMetric::from_fn(|_| values.next())
    }
}

impl<T, const N: usize> Index<Key> for PerMetric<T, N> {
    type Output = T;

    /// # Panics
    ///
    /// The metric needs a condition, but only metrics of ranks have values.
    fn index(&self, key: Key) -> &T {
        &self.0[key.index()]
    }
}

impl<const N: usize> AddAssign for PerMetric<f64, N> {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, value)| *sum += value);
    }
}

impl<T: Serialize, const N: usize> Serialize for PerMetric<T, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(metric, value)| (metric.column(), value)))
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for PerMetric<Option<T>, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, Metric::column)
    }
}

/// Reads a map by the keys that `key` returns; ignores other keys.
fn read<'de, T: Deserialize<'de>, const N: usize, D: Deserializer<'de>>(
    deserializer: D,
    key: fn(&Metric) -> String,
) -> Result<PerMetric<Option<T>, N>, D::Error> {
    struct Keyed<T, const N: usize>(BTreeMap<String, usize>, PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Keyed<T, N> {
        type Value = PerMetric<Option<T>, N>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("numbers by metric")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = PerMetric::from_fn(|_| None);
            while let Some(key) = map.next_key::<String>()? {
                match self.0.get(&key) {
                    Some(&i) => found.0[i] = map.next_value()?,
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(found)
        }
    }

    let keys = METRICS[..N].iter().enumerate().map(|(i, metric)| (key(metric), i)).collect();
    deserializer.deserialize_map(Keyed(keys, PhantomData))
}

/// Means in a report, keyed by [`Metric::name`]. Metrics of ranks are always written; metrics that need a condition only if
/// measured.
pub(super) mod by_name {
    use super::*;

    pub(in crate::judge) fn serialize<S: Serializer, const N: usize>(
        values: &PerMetric<Option<f64>, N>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (i, (metric, value)) in values.iter().enumerate() {
            if i < OF_RANKS || value.is_some() {
                map.serialize_entry(metric.name, value)?;
            }
        }
        map.end()
    }

    pub(in crate::judge) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<PerMetric<Option<f64>, N>, D::Error> {
        read(deserializer, |metric| metric.name.to_owned())
    }
}

/// Serializes the values as a list in table order.
pub(crate) fn in_order<T: Serialize, S: Serializer, const N: usize>(
    values: &PerMetric<T, N>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(&values.0)
}

/// Serializes as [`in_order`], or as null for `None`.
pub(crate) fn some_in_order<T: Serialize, S: Serializer, const N: usize>(
    values: &Option<PerMetric<T, N>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match values {
        Some(values) => in_order(values, serializer),
        None => serializer.serialize_none(),
    }
}
