//! Compiles a parsed Avro schema to a [`Schema`]: names become indexes.

use std::collections::HashMap;

use apache_avro::schema::{InnerDecimalSchema, NamespaceRef, UuidSchema};

use super::{Field, Node, NodeId, Schema};

impl Schema {
    /// Parses the JSON of a schema that may name types of `imports`. `wanted` are the fields to keep.
    pub(in super::super) fn parse(text: &str, imports: &[String], wanted: &[String]) -> Result<Self, String> {
        let (root, imports) = apache_avro::Schema::parse_str_with_list(text, imports)
            .map_err(|error| format!("not an Avro schema: {error}"))?;
        let mut compiler = Compiler { nodes: Vec::new(), names: HashMap::new(), wanted };
        for import in &imports {
            compiler.compile(import, None);
        }
        let root = compiler.compile(&root, None);
        let Compiler { nodes, names, .. } = compiler;
        if let Some((name, _)) = names.iter().find(|(_, node)| nodes[**node] == Node::Undefined) {
            return Err(format!("the type {name} is nowhere defined"));
        }
        let empty = empty(&nodes);
        Ok(Self { nodes, empty, root })
    }
}

/// Node → whether its values take no bytes: null, and types that consist of nulls only.
fn empty(nodes: &[Node]) -> Vec<bool> {
    let mut empty = vec![false; nodes.len()];
    loop {
        let mut changed = false;
        for (at, node) in nodes.iter().enumerate() {
            let now = match node {
                Node::Null | Node::Fixed(0) => true,
                Node::Record(fields) => fields.iter().all(|field| empty[field.node]),
                _ => false,
            };
            changed |= now != empty[at];
            empty[at] = now;
        }
        if !changed {
            return empty;
        }
    }
}

struct Compiler<'w> {
    nodes: Vec<Node>,
    /// Full name → type.
    names: HashMap<String, NodeId>,
    wanted: &'w [String],
}

impl Compiler<'_> {
    fn compile(&mut self, schema: &apache_avro::Schema, namespace: NamespaceRef<'_>) -> NodeId {
        use apache_avro::Schema as Avro;
        let node = match schema {
            Avro::Null => Node::Null,
            Avro::Boolean => Node::Boolean,
            Avro::Int | Avro::Long => Node::Integer,
            Avro::Float => Node::Float,
            Avro::Double => Node::Double,
            Avro::Bytes | Avro::String | Avro::Uuid(UuidSchema::String) => Node::Bytes,
            Avro::BigDecimal => Node::BigDecimal,
            Avro::Uuid(UuidSchema::Bytes) => Node::UuidBytes,
            Avro::Uuid(UuidSchema::Fixed(fixed)) => {
                return self.define(&fixed.name.fullname(namespace), Node::UuidFixed(fixed.size));
            }
            Avro::Decimal(decimal) => match &decimal.inner {
                InnerDecimalSchema::Bytes => Node::Decimal(None, decimal.scale),
                InnerDecimalSchema::Fixed(fixed) => {
                    let node = Node::Decimal(Some(fixed.size), decimal.scale);
                    return self.define(&fixed.name.fullname(namespace), node);
                }
            },
            Avro::Date => Node::Date,
            Avro::TimeMillis | Avro::TimeMicros => Node::TimeOfDay,
            Avro::TimestampMillis | Avro::LocalTimestampMillis => Node::Instant(1),
            Avro::TimestampMicros | Avro::LocalTimestampMicros => Node::Instant(1_000),
            Avro::TimestampNanos | Avro::LocalTimestampNanos => Node::Instant(1_000_000),
            Avro::Duration(fixed) => {
                return self.define(&fixed.name.fullname(namespace), Node::Duration(fixed.size));
            }
            Avro::Fixed(fixed) => {
                return self.define(&fixed.name.fullname(namespace), Node::Fixed(fixed.size));
            }
            Avro::Enum(symbols) => {
                return self.define(&symbols.name.fullname(namespace), Node::Enum(symbols.symbols.clone()));
            }
            Avro::Array(array) => Node::Array(self.compile(&array.items, namespace)),
            Avro::Map(map) => Node::Map(self.compile(&map.types, namespace)),
            Avro::Union(union) => {
                let branches = union.variants().iter().map(|branch| self.compile(branch, namespace));
                Node::Union(branches.collect())
            }
            Avro::Record(record) => {
                let name = record.name.fully_qualified_name(namespace);
                // Define the name first: the record's own fields may refer to it.
                let at = self.named(&name.fullname(None));
                let fields = record.fields.iter().map(|field| Field {
                    name: field.name.clone(),
                    node: self.compile(&field.schema, name.namespace()),
                    wanted: self.wanted.iter().position(|wanted| *wanted == field.name),
                });
                self.nodes[at] = Node::Record(fields.collect());
                return at;
            }
            Avro::Ref { name } => return self.named(&name.fullname(namespace)),
        };
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn named(&mut self, name: &str) -> NodeId {
        if let Some(&at) = self.names.get(name) {
            return at;
        }
        self.nodes.push(Node::Undefined);
        self.names.insert(name.to_owned(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn define(&mut self, name: &str, node: Node) -> NodeId {
        let at = self.named(name);
        self.nodes[at] = node;
        at
    }
}
