//! Compiles the text of a `.proto` file to a [`Message`], without `protoc`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use prost_reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, Kind as Descriptor, MessageDescriptor, Value as Default,
};
use protox::Compiler;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver};

use super::{Kind, Known, Message, Wanted, unsigned};
use crate::records::Value;

/// Files in memory, by the path that imports them.
struct Texts(HashMap<String, String>);

impl FileResolver for Texts {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match self.0.get(name) {
            Some(text) => File::from_source(name, text),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// Compiles the text of a file called `name`, with the files that it imports.
pub(in super::super) fn compile(
    name: &str,
    text: String,
    imports: Vec<(String, String)>,
) -> Result<FileDescriptor, String> {
    let mut texts: HashMap<String, String> = imports.into_iter().collect();
    texts.insert(name.to_owned(), text);
    let mut resolver = ChainFileResolver::new();
    resolver.add(Texts(texts));
    resolver.add(GoogleFileResolver::new());
    open(Compiler::with_file_resolver(resolver), Path::new(name))
}

/// Compiles a file. Imports are searched beside it and in the directories above.
pub(in super::super) fn compile_file(path: &Path) -> Result<FileDescriptor, String> {
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let mut resolver = ChainFileResolver::new();
    path.ancestors().skip(1).for_each(|above| resolver.add(IncludeFileResolver::new(above.to_owned())));
    resolver.add(GoogleFileResolver::new());
    open(Compiler::with_file_resolver(resolver), &path)
}

fn open(mut compiler: Compiler, path: &Path) -> Result<FileDescriptor, String> {
    // The debug format includes the position in the text.
    compiler.open_file(path).map_err(|error| format!("not a Protobuf schema: {error:?}"))?;
    let file = compiler.files().find(|file| !file.is_import()).map(|file| file.name().to_owned());
    let pool = compiler.descriptor_pool();
    let file = file.and_then(|name| pool.get_file_by_name(&name));
    file.ok_or_else(|| "not a Protobuf schema".into())
}

impl Message {
    /// The decoding plan for the `wanted` fields; fields that the type does not have are absent.
    pub(in super::super) fn new(message: &MessageDescriptor, wanted: &[String]) -> Self {
        let place = |name: &str| wanted.iter().position(|wanted| wanted == name);
        let mut absent = vec![Value::Absent; wanted.len()];
        let mut known = Vec::new();
        for field in message.fields() {
            let at = place(field.name());
            if let Some(at) = at {
                absent[at] = absent_value(&field);
            }
            let others = field.containing_oneof();
            let others = others.iter().flat_map(|oneof| oneof.fields().map(|other| other.name().to_owned()));
            let excludes: Vec<usize> =
                others.filter(|other| other != field.name()).filter_map(|other| place(&other)).collect();
            let wanted = at.map(|at| Wanted { at, kind: kind(&field), list: field.is_list() });
            if wanted.is_some() || !excludes.is_empty() {
                known.push(Known { number: field.number(), wanted, excludes });
            }
        }
        known.sort_unstable_by_key(|known| known.number);
        Self { known, absent }
    }
}

fn kind(field: &FieldDescriptor) -> Kind {
    if field.is_map() {
        return Kind::Other("a map");
    }
    match field.kind() {
        Descriptor::Double => Kind::Double,
        Descriptor::Float => Kind::Float,
        Descriptor::Int32 => Kind::Int32,
        Descriptor::Int64 => Kind::Int64,
        Descriptor::Uint32 => Kind::Uint32,
        Descriptor::Uint64 => Kind::Uint64,
        Descriptor::Sint32 | Descriptor::Sint64 => Kind::Sint,
        Descriptor::Fixed32 => Kind::Fixed32,
        Descriptor::Fixed64 => Kind::Fixed64,
        Descriptor::Sfixed32 => Kind::Sfixed32,
        Descriptor::Sfixed64 => Kind::Sfixed64,
        Descriptor::Bool => Kind::Bool,
        Descriptor::String | Descriptor::Bytes => Kind::Text,
        Descriptor::Enum(names) => Kind::Enum(by_number(&names)),
        Descriptor::Message(_) if field.is_group() => Kind::Other("a group"),
        Descriptor::Message(_) if field.is_list() => Kind::Other("a list of messages"),
        Descriptor::Message(message) => match (message.full_name(), message.get_field(1)) {
            ("google.protobuf.Timestamp", _) => Kind::Timestamp,
            (name, Some(value)) if is_wrapper(name) => {
                Kind::Wrapper(Box::new(kind(&value)), absent_value(&value))
            }
            _ => Kind::Other("a message"),
        },
    }
}

fn is_wrapper(name: &str) -> bool {
    let inner = name.strip_prefix("google.protobuf.").and_then(|name| name.strip_suffix("Value"));
    let kinds = ["Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"];
    inner.is_some_and(|inner| kinds.contains(&inner))
}

fn by_number(names: &EnumDescriptor) -> Vec<(i32, String)> {
    let mut names: Vec<_> = names.values().map(|value| (value.number(), value.name().to_owned())).collect();
    // Two names for one number: the first counts.
    names.sort_by_key(|(number, _)| *number);
    names.dedup_by_key(|(number, _)| *number);
    names
}

/// The value of a field that is missing from a message: its default, if the schema declares one or does not track
/// presence; otherwise none.
fn absent_value(field: &FieldDescriptor) -> Value<'static> {
    let given = field.field_descriptor_proto().default_value.is_some();
    if field.supports_presence() && !given {
        return Value::Null;
    }
    match field.default_value() {
        Default::Bool(value) => Value::Bool(value),
        Default::I32(number) => Value::Int(i64::from(number)),
        Default::I64(number) => Value::Int(number),
        Default::U32(number) => Value::Int(i64::from(number)),
        Default::U64(number) => unsigned(number),
        Default::F32(number) => Value::Single(number),
        Default::F64(number) => Value::Float(number),
        Default::String(text) => Value::Text(Cow::Owned(text)),
        Default::Bytes(bytes) => match std::str::from_utf8(&bytes) {
            Ok(text) => Value::Text(Cow::Owned(text.to_owned())),
            Err(_) => Value::NotUtf8,
        },
        Default::EnumNumber(number) => match field.kind() {
            Descriptor::Enum(names) => match names.get_value(number) {
                Some(value) => Value::Text(Cow::Owned(value.name().to_owned())),
                None => Value::Int(i64::from(number)),
            },
            _ => Value::Int(i64::from(number)),
        },
        Default::Message(_) | Default::List(_) | Default::Map(_) => Value::Null,
    }
}
