//! Reports as HTML pages ([`crate::html`]).

mod distribution;
mod examples;
mod line;
mod tables;
mod user;

use super::{Inspection, Timeline};

impl Inspection {
    /// Returns the report as an HTML page.
    pub fn to_html(&self) -> String {
        tables::page(self)
    }
}

impl Timeline {
    /// Returns the time line as an HTML page.
    pub fn to_html(&self) -> String {
        user::page(self)
    }
}
