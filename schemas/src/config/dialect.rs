//! `[events.csv]` and `[items.csv]`: how files of delimited text are written.

use serde::{Deserialize, Serialize};

use super::{ConfigError, invalid};

/// The dialect of delimited text. Defaults to RFC 4180 with a header; files named `.tsv` default to tabs, and RecBole's atomic
/// files (`.inter`, `.item`) to tabs and typed headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dialect {
    /// Text between two fields, such as `"\t"`, `";"` or `"::"`. Default: a comma, or a tab by the file's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    /// Character that encloses fields; doubled inside, it stands for itself. Empty: fields are never enclosed. Default: `"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
    /// Beginning of lines that are no records, such as `"#"`. Default: every line is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Names of the columns of files without a header, in their order. Default: the first line is the header.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Whether names in the header end with a type, as in `user_id:token`; the name is what stands before the colon. Default: only
    /// in files named `.inter` or `.item`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typed_header: Option<bool>,
}

impl Dialect {
    /// True if nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn validate(&self, section: &str) -> Result<(), ConfigError> {
        let key = |key: &str| format!("{section}.csv.{key}");
        let is_line_end = |c| matches!(c, '\n' | '\r');
        for (name, text) in [("delimiter", &self.delimiter), ("comment", &self.comment)] {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.contains(is_line_end)) {
                return invalid(key(name), "must be text without line ends");
            }
        }
        if let Some(quote) = &self.quote {
            if quote.len() > 1 || !quote.is_ascii() || quote.contains(is_line_end) {
                return invalid(key("quote"), "must be one ASCII character, or empty for none");
            }
            let delimiter = self.delimiter.as_deref().unwrap_or(",");
            if !quote.is_empty() && delimiter.contains(quote.as_str()) {
                return invalid(key("quote"), "must not be a part of the delimiter");
            }
        } else if self.delimiter.as_ref().is_some_and(|delimiter| delimiter.contains('"')) {
            return invalid(key("delimiter"), "contains the quote; set csv.quote to another one, or to \"\"");
        }
        for (at, name) in self.names.iter().enumerate() {
            if name.is_empty() || self.names[..at].contains(name) {
                return invalid(key("names"), format!("`{name}` is empty or named twice"));
            }
        }
        if self.typed_header == Some(true) && !self.names.is_empty() {
            return invalid(key("typed_header"), "files with csv.names have no header");
        }
        Ok(())
    }
}
