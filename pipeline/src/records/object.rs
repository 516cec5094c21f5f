//! The wanted fields of a JSON object. Text without escapes is not copied.
//!
//! `user.id` is the key `id` of the object under `user`, unless the object has a key `user.id`. Through an array such a path leads
//! to the list of what it finds in the elements.

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
                Named::Field(field) => self.values[field] = map.next_value_seed(AnyValue)?,
                Named::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
                Named::Outer(key) => {
                    let inside = map.next_value::<serde_json::Value>()?;
                    for (field, value) in self.fields.iter().zip(&mut *self.values) {
                        let path = field.strip_prefix(&*key).and_then(|rest| rest.strip_prefix('.'));
                        if let Some(path) = path.filter(|_| *value == Value::Absent) {
                            *value = at_path(&inside, path);
                        }
                    }
                }
            }
            place += 1;
        }
    }
}

/// What a key names.
enum Named {
    Field(usize),
    /// The beginning of the paths of fields.
    Outer(String),
    Other,
}

/// The value that `path` leads to inside `value`.
fn at_path(value: &serde_json::Value, path: &str) -> Value<'static> {
    match value {
        serde_json::Value::Object(object) => match (object.get(path), path.split_once('.')) {
            (Some(value), _) => owned(value),
            (None, Some((key, rest))) => object.get(key).map_or(Value::Absent, |value| at_path(value, rest)),
            (None, None) => Value::Absent,
        },
        serde_json::Value::Array(elements) => {
            Value::List(elements.iter().map(|element| at_path(element, path)).collect())
        }
        serde_json::Value::Null => Value::Null,
        _ => Value::Absent,
    }
}

fn owned(value: &serde_json::Value) -> Value<'static> {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(float)) if number.is_f64() => Value::Float(float),
            _ => Value::Text(Cow::Owned(number.to_string())),
        },
        serde_json::Value::String(text) => Value::Text(Cow::Owned(text.clone())),
        serde_json::Value::Array(elements) => Value::List(elements.iter().map(owned).collect()),
        serde_json::Value::Object(_) => Value::Other("an object"),
    }
}

/// Deserializes a key to what it names.
struct Key<'o> {
    fields: &'o [String],
    order: &'o mut Vec<JsonKey>,
    place: usize,
    keys: &'o mut Option<Vec<String>>,
}

impl<'a> DeserializeSeed<'a> for Key<'_> {
    type Value = Named;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Named, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Named;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Named, E> {
        if let Some(keys) = self.keys {
            keys.push(key.to_owned());
        }
        match self.order.get(self.place) {
            Some(JsonKey::Field(field)) if self.fields[*field] == key => return Ok(Named::Field(*field)),
            Some(JsonKey::Other(other)) if other == key => return Ok(Named::Other),
            _ => {}
        }
        let field = self.fields.iter().position(|field| field == key);
        let is_outer = |field: &String| {
            field.strip_prefix(key).is_some_and(|rest| rest.starts_with('.') && rest.len() > 1)
        };
        if field.is_none() && self.fields.iter().any(is_outer) {
            return Ok(Named::Outer(key.to_owned()));
        }
        let found = match field {
            Some(field) => JsonKey::Field(field),
            None if key.len() <= KEPT_KEY_BYTES => JsonKey::Other(key.to_owned()),
            None => JsonKey::Other(String::new()),
        };
        match self.order.get_mut(self.place) {
            Some(known) => *known = found,
            None => self.order.push(found),
        }
        Ok(field.map_or(Named::Other, Named::Field))
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
        let mut values = Vec::new();
        while let Some(value) = elements.next_element_seed(AnyValue)? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Value<'a>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("an object"))
    }
}
