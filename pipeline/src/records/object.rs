//! The wanted fields of a JSON object. Text without escapes is not copied.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::Value;

/// Reads the wanted fields of an object and skips the others.
pub(crate) struct Object<'o, 'a> {
    pub(crate) fields: &'o [String],
    pub(crate) values: &'o mut [Value<'a>],
    /// The keys of the previous object in order; the next object mostly has the same order.
    pub(crate) order: &'o mut Vec<JsonKey>,
    /// Collects the object's keys, if there is a list.
    pub(crate) keys: &'o mut Option<Vec<String>>,
}

/// A key of the previous object.
pub(crate) enum JsonKey {
    /// The key of a wanted field.
    Field(usize),
    /// A key that is not wanted.
    Other(String),
}

/// Maximum bytes of a remembered key.
const KEPT_KEY_BYTES: usize = 64;

impl<'a> DeserializeSeed<'a> for Object<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Object<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut place = 0;
        loop {
            let key = Key { fields: self.fields, order: &mut *self.order, place, keys: &mut *self.keys };
            let Some(field) = map.next_key_seed(key)? else { return Ok(()) };
            match field {
                Some(field) => self.values[field] = map.next_value_seed(AnyValue)?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            place += 1;
        }
    }
}

/// Deserializes a key to the field that it names.
struct Key<'o> {
    fields: &'o [String],
    order: &'o mut Vec<JsonKey>,
    place: usize,
    keys: &'o mut Option<Vec<String>>,
}

impl<'a> DeserializeSeed<'a> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Option<usize>, E> {
        if let Some(keys) = self.keys {
            keys.push(key.to_owned());
        }
        match self.order.get(self.place) {
            Some(JsonKey::Field(field)) if self.fields[*field] == key => return Ok(Some(*field)),
            Some(JsonKey::Other(other)) if other == key => return Ok(None),
            _ => {}
        }
        let field = self.fields.iter().position(|field| field == key);
        let found = match field {
            Some(field) => JsonKey::Field(field),
            None if key.len() <= KEPT_KEY_BYTES => JsonKey::Other(key.to_owned()),
            None => JsonKey::Other(String::new()),
        };
        match self.order.get_mut(self.place) {
            Some(known) => *known = found,
            None => self.order.push(found),
        }
        Ok(field)
    }
}

/// Deserializes any JSON value to a [`Value`].
struct AnyValue;

impl<'a> DeserializeSeed<'a> for AnyValue {
    type Value = Value<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Value<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for AnyValue {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'a>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'a>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'a>, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'a>, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Text(Cow::Owned(value.to_string())), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value<'a>, E> {
        Ok(Value::Float(value))
    }

    fn visit_borrowed_str<E>(self, value: &'a str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value<'a>, E> {
        Ok(Value::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<Value<'a>, A::Error> {
        let mut texts = Some(Vec::new());
        while let Some(element) = elements.next_element::<serde_json::Value>()? {
            let text = match element {
                serde_json::Value::Null => continue,
                serde_json::Value::String(text) => Some(text),
                number @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => {
                    Some(number.to_string())
                }
                _ => None,
            };
            texts = texts.zip(text).map(|(mut texts, text)| {
                texts.push(Cow::Owned(text));
                texts
            });
        }
        Ok(texts.map_or(Value::Other("a list of lists or objects"), Value::List))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Value<'a>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}
