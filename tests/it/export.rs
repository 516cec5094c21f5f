//! `trainer export`: a trained model for other systems.

use crate::programs::{Workspace, files, json, stderr};

#[test]
fn a_trained_model_is_exported() {
    let workspace = Workspace::new();
    for command in [&["ingest"][..], &["build-sequences"]] {
        workspace.succeed("pipeline", command);
    }
    workspace.succeed("trainer", &["pretrain", "--name", "m"]);
    let export = ["export", "--model", "m", "--out", "exported", "--json"];
    let output = workspace.succeed("trainer", &export);
    let (report, text) = (json(&output), stderr(&output));
    assert_eq!(report["model"], "m");
    assert_eq!((report["items"].as_u64(), report["d"].as_u64()), (Some(30), Some(8)));
    assert!(text.contains("30 items (30 active)") && text.contains("input   history int64 [n]"), "{text}");

    let exported = files(&workspace.path("exported"));
    let names: Vec<&str> = exported.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "conditions.json",
            "item_vectors.npy",
            "item_vectors.parquet",
            "manifest.json",
            "model.onnx",
            "model.safetensors"
        ]
    );
    let weights = std::fs::read(workspace.root().join("models/m/model.safetensors")).unwrap();
    assert_eq!(exported[5].1, weights);

    // A second export gives the same files, and leaves nothing beside them.
    workspace.succeed("trainer", &export);
    assert_eq!(files(&workspace.path("exported")), exported);
    let entries = std::fs::read_dir(workspace.path("")).unwrap();
    let hidden = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(hidden.filter(|name| name.starts_with('.')).count(), 0);
}

#[test]
fn what_is_no_export_is_left_alone() {
    let workspace = Workspace::new();
    for command in [&["ingest"][..], &["build-sequences"]] {
        workspace.succeed("pipeline", command);
    }
    let text = workspace.fail("trainer", &["export", "--model", "m", "--out", "exported"], 1);
    assert!(text.contains("models/m; models here: none"), "{text}");
    workspace.succeed("trainer", &["pretrain", "--name", "m", "--set", "pretrain.epochs=1"]);
    let text = workspace.fail("trainer", &["export", "--model", "m", "--out", "root"], 1);
    assert!(text.contains("root is not an export") && text.contains("--out"), "{text}");
    assert!(workspace.root().join("models/m/model.safetensors").exists());
    let row = ["pretrain", "--name", "row", "--set", "model.mask=row", "--set", "pretrain.epochs=1"];
    workspace.succeed("trainer", &row);
    let text = workspace.fail("trainer", &["export", "--model", "row", "--out", "exported"], 1);
    assert!(text.contains("model `row` has model.mask = \"row\""), "{text}");
    assert!(!workspace.path("exported").exists());
}
