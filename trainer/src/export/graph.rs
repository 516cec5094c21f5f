//! Builder of an ONNX graph: named constants, and one method per operator that the model needs. Memory: all constants, as bytes.

use super::proto::{
    Attribute, AttributeType, DataLocation, DataType, Dimension, Entry, Graph, Node, Shape, Size, Tensor,
    TensorType, Type, ValueInfo,
};

/// Name of a value in the graph: an input, a constant or the output of a node.
pub(super) type Value = String;

/// A graph under construction. Nodes are named after the current scope.
#[derive(Debug)]
pub(super) struct Builder {
    graph: Graph,
    scope: String,
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self { graph: Graph { name: name.into(), ..Graph::default() }, scope: String::new() }
    }

    /// Sets the scope of the nodes added from here on.
    pub(super) fn enter(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    pub(super) fn finish(self) -> Graph {
        self.graph
    }

    pub(super) fn input(&mut self, name: &str, kind: DataType, sizes: &[Size], about: &str) -> Value {
        self.graph.input.push(value_info(name, kind, sizes, about));
        name.into()
    }

    /// Adds `value` as an output of the graph.
    pub(super) fn output(&mut self, name: &str, value: &str, kind: DataType, sizes: &[Size], about: &str) {
        self.graph.node.push(Node {
            input: vec![value.into()],
            output: vec![name.into()],
            name: format!("output/{name}"),
            op_type: "Identity".into(),
            attribute: Vec::new(),
        });
        self.graph.output.push(value_info(name, kind, sizes, about));
    }

    /// Adds a constant of floats.
    pub(super) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(tensor(name, DataType::Float, dims), bytes)
    }

    /// Adds a constant of integers.
    pub(super) fn integers(&mut self, name: &str, dims: &[usize], values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(tensor(name, DataType::Int64, dims), bytes)
    }

    /// Adds a constant of floats whose elements are in the file `location` next to the graph, starting at byte `offset`.
    pub(super) fn external_floats(
        &mut self,
        name: &str,
        dims: &[usize],
        location: &str,
        offset: usize,
    ) -> Value {
        let length = size_of::<f32>() * dims.iter().product::<usize>();
        let entry = |key: &str, value: String| Entry { key: key.into(), value };
        self.graph.initializer.push(Tensor {
            external_data: vec![
                entry("location", location.into()),
                entry("offset", offset.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: Some(DataLocation::External.into()),
            ..tensor(name, DataType::Float, dims)
        });
        name.into()
    }

    /// Returns an integer constant, shared by all uses.
    pub(super) fn integer(&mut self, value: i64) -> Value {
        let name = format!("integer/{value}");
        self.shared(&name).unwrap_or_else(|| self.integers(&name, &[], &[value]))
    }

    /// Returns a constant list of integers, such as a shape or axes, shared by all uses.
    pub(super) fn list(&mut self, values: &[i64]) -> Value {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("list/{}", text.join(","));
        self.shared(&name).unwrap_or_else(|| self.integers(&name, &[values.len()], values))
    }

    /// Returns a float constant, shared by all uses.
    pub(super) fn float(&mut self, value: f32) -> Value {
        let name = format!("float/{value:e}");
        self.shared(&name).unwrap_or_else(|| self.floats(&name, &[], &[value]))
    }

    /// True if a constant has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.graph.initializer.iter().any(|constant| constant.name == name)
    }

    fn shared(&self, name: &str) -> Option<Value> {
        self.has(name).then(|| name.to_owned())
    }

    fn constant(&mut self, tensor: Tensor, bytes: Vec<u8>) -> Value {
        let name = tensor.name.clone();
        self.graph.initializer.push(Tensor { raw_data: Some(bytes), ..tensor });
        name
    }

    /// Adds a node with one output and no attributes.
    pub(super) fn node(&mut self, operator: &str, inputs: &[&str]) -> Value {
        self.node_with(operator, inputs, Vec::new())
    }

    /// Adds a node with one output.
    pub(super) fn node_with(&mut self, operator: &str, inputs: &[&str], attribute: Vec<Attribute>) -> Value {
        let name = format!("{}/{operator}_{}", self.scope, self.graph.node.len());
        self.graph.node.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: operator.into(),
            attribute,
        });
        name
    }

    /// Gathers rows (`axis` 0) or columns (`axis` 1) of `table`.
    pub(super) fn gather(&mut self, table: &str, indexes: &str, axis: i64) -> Value {
        self.node_with("Gather", &[table, indexes], vec![int("axis", axis)])
    }

    pub(super) fn concat(&mut self, parts: &[&str], axis: i64) -> Value {
        self.node_with("Concat", parts, vec![int("axis", axis)])
    }

    pub(super) fn cast(&mut self, value: &str, to: DataType) -> Value {
        self.node_with("Cast", &[value], vec![int("to", i64::from(i32::from(to)))])
    }

    pub(super) fn reshape(&mut self, value: &str, shape: &[i64]) -> Value {
        let shape = self.list(shape);
        self.node("Reshape", &[value, &shape])
    }

    pub(super) fn transpose(&mut self, value: &str, order: &[i64]) -> Value {
        self.node_with("Transpose", &[value], vec![ints("perm", order)])
    }

    /// Adds dimensions of size 1 to `value`.
    pub(super) fn unsqueeze(&mut self, value: &str, axes: &[i64]) -> Value {
        let axes = self.list(axes);
        self.node("Unsqueeze", &[value, &axes])
    }

    /// Takes elements `from..to` along `axis`.
    pub(super) fn slice(&mut self, value: &str, axis: i64, from: i64, to: i64) -> Value {
        let [from, to, axis] = [from, to, axis].map(|bound| self.list(&[bound]));
        self.node("Slice", &[value, &from, &to, &axis])
    }

    /// Applies softmax over the last dimension.
    pub(super) fn softmax(&mut self, scores: &str) -> Value {
        self.node_with("Softmax", &[scores], vec![int("axis", -1)])
    }
}

/// Returns an integer attribute.
pub(super) fn int(name: &str, value: i64) -> Attribute {
    Attribute { name: name.into(), i: Some(value), r#type: AttributeType::Int.into(), ..Attribute::default() }
}

/// Returns a float attribute.
pub(super) fn float(name: &str, value: f32) -> Attribute {
    Attribute {
        name: name.into(),
        f: Some(value),
        r#type: AttributeType::Float.into(),
        ..Attribute::default()
    }
}

fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute {
        name: name.into(),
        ints: values.to_vec(),
        r#type: AttributeType::Ints.into(),
        ..Attribute::default()
    }
}

fn tensor(name: &str, kind: DataType, dims: &[usize]) -> Tensor {
    Tensor {
        name: name.into(),
        data_type: kind.into(),
        dims: dims.iter().map(|&size| size as i64).collect(),
        ..Tensor::default()
    }
}

fn value_info(name: &str, kind: DataType, sizes: &[Size], about: &str) -> ValueInfo {
    let dim = sizes.iter().map(|size| Dimension { value: Some(size.clone()) }).collect();
    let tensor_type = TensorType { elem_type: kind.into(), shape: Some(Shape { dim }) };
    ValueInfo {
        name: name.into(),
        r#type: Some(Type { tensor_type: Some(tensor_type) }),
        doc_string: about.into(),
    }
}
