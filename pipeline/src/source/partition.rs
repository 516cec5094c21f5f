//! Values in the paths of files, as Hive, Spark and DuckDB write them: `dt=2024-05-01/country=de/part-0.parquet`.
//!
//! A directory `name=value` below the configured directory, or below a pattern's fixed part, is a column of every record of the
//! file. Where the file has a column of that name too, the path's value is read, as in Spark and DuckDB. Both parts are decoded
//! from `%3A`; `__HIVE_DEFAULT_PARTITION__` and nothing are no value.
//!
//! The formats know none of this: what a path gives is not wanted of the file ([`Need::InPath`]), and [`BesidePath`] adds it to
//! each record.

use std::borrow::Cow;
use std::path::{Component, Path};

use percent_encoding::percent_decode_str;

use super::error::SourceError;
use super::files::InputFile;
use super::record::{Raw, Records, Step};
use crate::privacy::UserColumn;
use crate::records::{Fields, Need, Value, Wanted};

/// What Hive writes for null.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// A column whose value is the same for all records of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionValue {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// The values in the directories of `path`, in their order.
///
/// # Errors
///
/// [`SourceError::NotTheFormat`]: a part is not UTF-8, or two directories have a value for one column.
pub(super) fn partition_values(path: &Path) -> Result<Vec<PartitionValue>, SourceError> {
    let refused = |problem: String| SourceError::NotTheFormat { path: path.display().to_string(), problem };
    let mut values: Vec<PartitionValue> = Vec::new();
    for directory in path.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(directory) = directory else { continue };
        let directory = directory.to_string_lossy();
        let Some((name, value)) = directory.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            continue;
        };
        let decoded = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8();
            decoded.map(Cow::into_owned).map_err(|_| refused(format!("`{directory}` is not UTF-8")))
        };
        let name = decoded(name)?;
        let value = Some(decoded(value)?).filter(|value| !value.is_empty() && value != NULL);
        if values.iter().any(|other| other.name == name) {
            return Err(refused(format!("has two values of `{name}`")));
        }
        values.push(PartitionValue { name, value });
    }
    Ok(values)
}

/// The slots that a file's path has values for.
pub(super) struct PathValues {
    slots: Vec<Option<Value<'static>>>,
}

impl PathValues {
    /// Returns none if no wanted column is in the file's path.
    ///
    /// # Errors
    ///
    /// [`SourceError::NotTheFormat`]: the path names the user. A rejected record is kept without its path, and would not name
    /// whom `pipeline forget` looks for.
    pub(super) fn new(file: &InputFile, wanted: &[Wanted]) -> Result<Option<Self>, SourceError> {
        let value = |wanted: &Wanted| {
            let found = file.partitions.iter().find(|value| value.name == wanted.column)?;
            Some(found.value.clone().map_or(Value::Null, |text| Value::Text(Cow::Owned(text))))
        };
        let slots: Vec<_> = wanted.iter().map(value).collect();
        let user = wanted.iter().zip(&slots).find(|(w, value)| w.key == USER_KEY && value.is_some());
        if let Some((Wanted { column, .. }, _)) = user {
            let problem = format!(
                "its directory gives `{column}`, which `{USER_KEY}` names; users are read from records only, where \
                 `pipeline forget` finds them"
            );
            return Err(SourceError::NotTheFormat { path: file.source.clone(), problem });
        }
        Ok(slots.iter().any(Option::is_some).then_some(Self { slots }))
    }

    /// What is wanted of the file itself; the slots stay the same.
    pub(super) fn rest(&self, wanted: &[Wanted]) -> Vec<Wanted> {
        let rest = wanted.iter().zip(&self.slots).map(|(wanted, value)| match value {
            Some(_) => Wanted { need: Need::InPath, ..wanted.clone() },
            None => wanted.clone(),
        });
        rest.collect()
    }

    /// Whether the path has a value for `slot`, null included.
    pub(super) fn has(&self, slot: usize) -> bool {
        self.slots[slot].is_some()
    }
}

const USER_KEY: &str = "events.columns.user_id";

/// Records with the values of their file's path.
pub(super) struct BesidePath<'a, R> {
    pub(super) records: &'a mut R,
    pub(super) values: &'a PathValues,
}

impl<R: Fields> Fields for BesidePath<'_, R> {
    fn value(&self, slot: usize) -> Value<'_> {
        match &self.values.slots[slot] {
            Some(value) => value.borrowed(),
            None => self.records.value(slot),
        }
    }
}

impl<R: Records> Records for BesidePath<'_, R> {
    fn advance(&mut self) -> Step {
        self.records.advance()
    }

    fn raw(&mut self) -> Raw {
        self.records.raw()
    }

    fn user_column(&self) -> UserColumn {
        self.records.user_column()
    }

    fn done(&self) -> usize {
        self.records.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(path: &str) -> Vec<(String, Option<String>)> {
        let values = partition_values(Path::new(path)).unwrap();
        values.into_iter().map(|value| (value.name, value.value)).collect()
    }

    #[test]
    fn directories_are_columns_and_file_names_are_not() {
        let some = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
        assert_eq!(values("dt=2024-05-01/x/a=b=c/d=1.csv"), [some("dt", "2024-05-01"), some("a", "b=c")]);
        assert_eq!(values("t=10%3A00%20x+y/a%2Fb=%C3%BC/f"), [some("t", "10:00 x+y"), some("a/b", "ü")]);
        assert_eq!(values(&format!("a=/b={NULL}/=c/f")), [("a".to_owned(), None), ("b".to_owned(), None)]);
        assert_eq!(values("f"), []);
        for wrong in ["a=%ff/f", "a=1/a=2/f"] {
            assert!(partition_values(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
