//! The files of an export, and refused exports.

use std::collections::HashSet;
use std::fs::File;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, UInt32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::hash::hash128;
use serde_json::Value;

use super::*;

fn example() -> Example {
    let model = Model { score_temperature: 0.1, attributes: vec!["genre".into()], ..settings() };
    Example::new(model, paradigm(Paradigm::Cgsa, true))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn both_files_hold_the_vectors_as_they_are_scored() {
    let example = example();
    example.export();
    let expected = example.candidates().flatten_all().unwrap().to_vec1::<f32>().unwrap();

    let npy = fs::read(example.out().join(ITEM_VECTORS_NPY)).unwrap();
    let (header, elements) = npy.split_at(npy.len() - 4 * ITEMS * 8);
    assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
    assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
    assert!(header.ends_with(b"\n") && header.len().is_multiple_of(64));
    let fields = String::from_utf8_lossy(&header[10..]);
    assert!(fields.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (12, 8), }"), "{fields}");
    let element = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    assert_eq!(elements.chunks_exact(4).map(element).collect::<Vec<_>>(), expected);

    let file = File::open(example.out().join("item_vectors.parquet")).unwrap();
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert_eq!(batch.column(0).as_string::<i32>().value(11), "item 12");
    assert_eq!(batch.column(1).as_primitive::<UInt32Type>().values()[..], (1..=12).collect::<Vec<_>>());
    let active = batch.column(2).as_boolean();
    assert!((0..12).all(|row| active.value(row) == (row != 1)));
    let vectors = batch.column(3).as_fixed_size_list();
    assert_eq!(vectors.value_length(), 8);
    assert_eq!(vectors.values().as_primitive::<Float32Type>().values()[..], expected);
    assert!(batches.next().is_none());
}

#[test]
fn the_manifest_describes_the_files() {
    let example = example();
    let report = example.export();
    let manifest = json(&example.out().join(MANIFEST));
    let files = manifest["files"].as_object().unwrap();
    let there: HashSet<String> =
        fs::read_dir(example.out()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, files.keys().cloned().chain([MANIFEST.to_owned()]).collect());
    for (name, entry) in files {
        let content = fs::read(example.out().join(name)).unwrap();
        assert_eq!(entry["bytes"], content.len());
        assert_eq!(entry["xxh3_128"], format!("{:032x}", hash128(&content)));
    }
    assert_eq!((manifest["items"].as_u64(), manifest["active_items"].as_u64()), (Some(12), Some(11)));
    assert_eq!(manifest["scores"]["similarity"], "cosine");
    assert_eq!(manifest["lineage"]["items_version"], 3);
    let shapes: Vec<_> = ["inputs", "outputs"]
        .into_iter()
        .flat_map(|kind| manifest[kind].as_array().unwrap())
        .map(|port| format!("{} {}", port["name"], port["shape"]))
        .collect();
    assert_eq!(
        shapes,
        [
            r#""history" ["n"]"#,
            r#""times" ["n"]"#,
            r#""conditions" ["P"]"#,
            r#""condition_mask" ["P","n"]"#,
            r#""hidden" ["P",8]"#,
            r#""scores" ["P",12]"#
        ]
    );
    let text = report.to_string();
    assert!(text.contains("12 items (11 active)") && text.contains("condition_mask bool [P, n]"), "{text}");

    let conditions = json(&example.out().join("conditions.json"));
    let rows: Vec<String> = conditions
        .as_array()
        .unwrap()
        .iter()
        .map(|c| format!("{} {} {}", c["row"], c["attribute"], c["value"]))
        .collect();
    assert_eq!(
        rows,
        [r#"0 "genre" "a""#, r#"1 "genre" "b""#, r#"2 "genre" "c""#, r#"3 "new-release" "new-release""#]
    );
    assert!(conditions[3]["age"]["max_age"].is_string() && conditions[0]["age"].is_null());
}

#[test]
fn weights_are_those_of_the_checkpoint() {
    let example = example();
    example.export();
    let weights = candle_core::safetensors::load(example.out().join(WEIGHTS), &Device::Cpu).unwrap();
    assert_eq!(weights.len(), example.model.tensors().len());
    assert!(weights.contains_key("backbone.0.attention.qkv") && weights.contains_key("items.id"));
}

/// Every value of the graph is defined once, before its first use.
#[test]
fn the_graph_can_be_computed_in_its_order() {
    let sft = [None, paradigm(Paradigm::Cgsa, false), paradigm(Paradigm::Pinrec, true)];
    for sft in sft {
        let example = Example::new(settings(), sft);
        example.export();
        let bytes = fs::read(example.out().join(MODEL_ONNX)).unwrap();
        let model = proto::Model::decode(&bytes[..]).unwrap();
        let graph = model.graph.unwrap();
        let inputs = graph.input.iter().map(|input| &input.name);
        let mut known: HashSet<&String> = inputs.chain(graph.initializer.iter().map(|c| &c.name)).collect();
        assert_eq!(known.len(), graph.input.len() + graph.initializer.len());
        for node in &graph.node {
            assert!(node.input.iter().all(|input| known.contains(input)), "{}", node.name);
            assert!(node.output.iter().all(|output| known.insert(output)), "{}", node.name);
        }
        assert!(graph.output.iter().all(|output| known.contains(&output.name)));
        assert!(
            graph.input.iter().all(|input| graph.node.iter().any(|node| node.input.contains(&input.name)))
        );
    }
}

#[test]
fn large_item_vectors_stay_in_their_own_file() {
    let inside = example();
    let mut outside = example();
    outside.external_from_bytes = 8 * 12 * 4;
    let size = |example: &Example| example.export().manifest.files[MODEL_ONNX].bytes;
    let difference = size(&inside) - size(&outside);
    assert!((250..8 * 12 * 4).contains(&difference), "{difference}");
}

#[test]
fn what_the_graph_does_not_know_is_refused() {
    let plain = |change: fn(&mut Model)| {
        let mut model = settings();
        change(&mut model);
        Example::new(model, None).error()
    };
    let text = plain(|model| (model.architecture, model.branches) = (Architecture::Hstu, 1));
    assert!(
        text.contains("model `m` has model.architecture = \"hstu\"") && text.contains("climber-pilot"),
        "{text}"
    );
    assert!(plain(|model| model.mask = MaskMode::Row).contains("model.mask = \"row\""));
    for refused in [Paradigm::Lum, Paradigm::AdalnZero] {
        let example = Example::new(settings(), paradigm(refused, true));
        assert!(example.error().contains(&format!("sft.paradigm = \"{}\"", refused.name())));
        assert!(!example.out().exists());
    }
    let diverged = example();
    let (_, var) = diverged.model.parameters().iter().find(|(name, _)| *name == "items.fuse").unwrap();
    var.set(&(var.as_tensor() * f64::INFINITY).unwrap()).unwrap();
    assert!(diverged.error().contains("item_index 1 "), "{}", diverged.error());
}

#[test]
fn an_export_replaces_an_export_and_nothing_else() {
    let example = example();
    fs::create_dir(example.out()).unwrap();
    example.export();
    let first = fs::read(example.out().join(MODEL_ONNX)).unwrap();
    fs::write(example.out().join("conditions.json"), "spoiled").unwrap();
    example.export();
    assert_ne!(fs::read(example.out().join("conditions.json")).unwrap(), b"spoiled");
    assert_eq!(fs::read(example.out().join(MODEL_ONNX)).unwrap(), first);

    fs::write(example.out().join("faiss.index"), "mine").unwrap();
    let text = example.error();
    assert!(text.contains("`faiss.index`") && text.contains("--out"), "{text}");
    assert_eq!(fs::read(example.out().join("faiss.index")).unwrap(), b"mine");
    fs::remove_file(example.out().join("faiss.index")).unwrap();
    for manifest in ["{}", r#"{"format": "other", "files": {}}"#] {
        fs::write(example.out().join(MANIFEST), manifest).unwrap();
        assert!(example.error().contains(MANIFEST));
    }
    fs::remove_file(example.out().join(MANIFEST)).unwrap();
    assert!(example.error().contains("no manifest.json"));
    fs::remove_dir_all(example.out()).unwrap();
    fs::write(example.out(), "mine").unwrap();
    assert!(example.error().contains("it is a file"));
    assert_eq!(fs::read(example.out()).unwrap(), b"mine");
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let example = example();
    let interrupt = Interrupt::default();
    interrupt.request();
    assert!(matches!(example.write(&interrupt), Err(ExportError::Interrupted)));
    let left: Vec<_> =
        fs::read_dir(example.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [WEIGHTS]);
}
