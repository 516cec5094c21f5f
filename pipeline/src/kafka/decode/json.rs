//! Decodes one JSON object, of one or several lines. Text without escapes is not copied.

use schemas::tables::Reason;
use serde::de::DeserializeSeed;

use crate::records::{JsonKey, Object, Rejection, Value};

/// Decodes objects.
#[derive(Default)]
pub(super) struct Json {
    order: Vec<JsonKey>,
}

impl Json {
    /// Fills `values` with the `fields` of the object in `value`.
    pub(super) fn decode<'a>(
        &mut self,
        value: &'a [u8],
        fields: &[String],
        values: &mut [Value<'a>],
    ) -> Result<(), Rejection> {
        let text = std::str::from_utf8(value)
            .map_err(|_| Rejection::new(Reason::InvalidUtf8, "the value is not UTF-8"))?;
        let mut parser = serde_json::Deserializer::from_str(text);
        let object = Object { fields, values, order: &mut self.order, keys: &mut None };
        object.deserialize(&mut parser).and_then(|()| parser.end()).map_err(|error| {
            // Most messages have one line, and then its number is omitted.
            let message = error.to_string().replace(" at line 1 column ", " at byte ");
            Rejection::new(Reason::MalformedJson, message)
        })
    }
}
