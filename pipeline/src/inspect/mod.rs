//! Reports the contents of a root's tables, as text, HTML and JSON.
//!
//! For every table: version, rows, shards, bytes, columns and properties. For the tables of the contract also their
//! contents: the shape of the log, the catalogue's attributes, the distributions of the histories, the reasons of
//! rejected records. Shards are streamed; memory grows with distinct values, not with rows.

mod catalogue;
mod dead_letters;
mod distribution;
mod error;
mod examples;
mod histories;
mod html;
mod instructions;
mod log;
mod popularity;
mod print;
mod spans;
mod timeline;
mod user;

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use schemas::tables::{DEAD_LETTERS, EVENTS, INSTRUCTIONS, ITEMS, REFRESH, SEQUENCES, is_sft};
use serde::Serialize;
use store::boxed::Boxed;
use store::{Root, Snapshot};

pub use catalogue::{AttributeValues, ItemsContents};
pub use dead_letters::{DeadLettersContents, ReasonCount};
pub use distribution::{Bin, Distribution};
pub use error::InspectError;
pub(crate) use error::known_table;
pub use examples::{Example, SftContents};
pub use histories::SequencesContents;
pub use instructions::{Instruction, InstructionsContents};
pub use log::{Count, EventsContents, Period};
pub use popularity::{Popularity, Rank, TopShare};
pub use spans::{SpanBin, SpanDistribution};
pub use timeline::{Entry, Mark, Timeline};
pub use user::draw_user;

/// The tables of a root.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The root.
    pub root: String,
    /// One entry for each table.
    pub tables: Vec<TableReport>,
}

/// One table at its newest version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableReport {
    /// The name.
    pub table: String,
    /// The version.
    pub version: u64,
    /// Rows, as the log counts them.
    pub rows: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of the shards.
    pub bytes: u64,
    /// The columns, in order.
    pub columns: Vec<ColumnReport>,
    /// The table's properties.
    pub properties: BTreeMap<String, String>,
    /// Its contents, if it is a table of the contract.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ColumnReport {
    /// The name.
    pub name: String,
    /// The Arrow type.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Whether a row may lack a value.
    pub nullable: bool,
}

/// Contents of a table of the contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Contents {
    /// `events`.
    Events(EventsContents),
    /// `items`.
    Items(ItemsContents),
    /// `sequences`, `refresh`.
    Sequences(Box<SequencesContents>),
    /// `dead_letters`.
    DeadLetters(DeadLettersContents),
    /// `instructions`.
    Instructions(InstructionsContents),
    /// `sft/<condition>`.
    Sft(Box<SftContents>),
}

/// Inspects one table, or all of them.
///
/// # Errors
///
/// [`InspectError`] if the root has no such table, or a table cannot be read.
pub fn inspect<'a>(root: &'a Root, table: Option<&'a str>) -> Boxed<'a, Result<Inspection, InspectError>> {
    Box::pin(look_into(root, table))
}

async fn look_into(root: &Root, table: Option<&str>) -> Result<Inspection, InspectError> {
    let names = match table {
        Some(name) => vec![known_table(root, name)?],
        None => root.tables()?,
    };
    let place = root.path().display().to_string();
    if names.is_empty() {
        return Err(InspectError::NoTables { root: place });
    }
    let mut reports = Vec::new();
    for name in names {
        // A table with an empty log has no contents.
        if let Some(snapshot) = root.snapshot(&name).await? {
            reports.push(report(root, snapshot).await?);
        }
    }
    Ok(Inspection { root: place, tables: reports })
}

async fn report(root: &Root, snapshot: Snapshot) -> Result<TableReport, InspectError> {
    let name = snapshot.name().to_owned();
    let schema = snapshot.stored_schema()?;
    let column = |field: &arrow::datatypes::FieldRef| ColumnReport {
        name: field.name().clone(),
        data_type: type_name(field.data_type()),
        nullable: field.is_nullable(),
    };
    Ok(TableReport {
        version: snapshot.version(),
        rows: snapshot.rows(),
        shards: snapshot.shards().len() as u64,
        bytes: snapshot.shards().iter().map(|shard| shard.bytes).sum(),
        columns: schema.fields().iter().map(column).collect(),
        properties: snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        contents: match name.as_str() {
            EVENTS => Some(Contents::Events(log::read(snapshot).await?)),
            ITEMS => Some(Contents::Items(catalogue::read(&snapshot, &schema).await?)),
            SEQUENCES | REFRESH => Some(Contents::Sequences(Box::new(histories::read(&snapshot).await?))),
            DEAD_LETTERS => Some(Contents::DeadLetters(dead_letters::read(&snapshot).await?)),
            INSTRUCTIONS => Some(Contents::Instructions(instructions::read(&snapshot).await?)),
            name if is_sft(name) => Some(Contents::Sft(Box::new(examples::read(root, &snapshot).await?))),
            _ => None,
        },
        table: name,
    })
}

/// The type as the contract writes it.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::List(element) => format!("List<{}>", type_name(element.data_type())),
        DataType::Timestamp(unit, Some(zone)) => format!("Timestamp({unit}, {zone})"),
        other => other.to_string(),
    }
}
