"""Checks exports against the numbers of the trainer: `export.py CASES.json`.

CASES.json is a list of {"directory": an export, "runs": [{"inputs": {name: value}, "hidden": ..., "scores": ...}]}.
Every run of model.onnx in ONNX Runtime must give those hidden states and scores; item_vectors.npy and
item_vectors.parquet must hold the same vectors, with which hidden states give the scores. Needs onnxruntime and numpy;
what needs onnx or pyarrow is left out, and said to be, where they are missing.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime

TYPES = {"int64": np.int64, "bool": np.bool_}
TOLERANCE = 1e-4


def distance(found, expected):
    """The largest difference; relative where numbers are above 1."""
    expected = np.array(expected, np.float32)
    if found.shape != expected.shape:
        sys.exit(f"shape {found.shape}, not {expected.shape}")
    return float(np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected))))


def check_graph(path):
    try:
        import onnx
    except ImportError:
        return "onnx is not installed: not checked by it"
    onnx.checker.check_model(str(path), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    return f"onnx accepts {len(inferred.graph.node)} nodes"


def check_parquet(path, vectors):
    try:
        import pyarrow.parquet
    except ImportError:
        return "pyarrow is not installed: parquet not read"
    table = pyarrow.parquet.read_table(path)
    column = table["vector"].combine_chunks()
    assert pyarrow.types.is_fixed_size_list(column.type), column.type
    rows = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    assert np.array_equal(rows, vectors)
    assert table["item_index"].to_pylist() == list(range(1, len(vectors) + 1))
    return "parquet holds the same"


def check(export, runs):
    vectors = np.load(export / "item_vectors.npy", mmap_mode="r")
    session = onnxruntime.InferenceSession(export / "model.onnx", providers=["CPUExecutionProvider"])
    manifest = json.loads((export / "manifest.json").read_text())
    assert vectors.dtype == np.float32 and vectors.shape == (manifest["items"], manifest["d"])
    types = {port["name"]: TYPES[port["type"]] for port in manifest["inputs"]}
    worst = 0.0
    for run in runs:
        n = len(run["inputs"]["history"])
        inputs = {name: np.array(value, types[name]) for name, value in run["inputs"].items()}
        hidden, scores = session.run(["hidden", "scores"], inputs)
        for name, found in [("hidden", hidden), ("scores", scores)]:
            off = distance(found, run[name])
            if not off <= TOLERANCE:
                sys.exit(f"{export}, {n} items: {name} differ by {off}\n{json.dumps(run['inputs'])}")
            worst = max(worst, off)
        assert distance(hidden @ vectors.T, scores) <= TOLERANCE
    for wrong in [0, -1, len(vectors) + 1]:
        inputs = {name: np.zeros([1] * len(port["shape"]), types[name])
                  for port in manifest["inputs"] for name in [port["name"]]}
        inputs["history"][0] = wrong
        try:
            session.run(None, inputs)
        except Exception as error:
            assert "out of data bounds" in str(error), error
        else:
            sys.exit(f"{export}: item_index {wrong} is no error")
    said = [check_graph(export / "model.onnx"), check_parquet(export / "item_vectors.parquet", vectors)]
    names = ", ".join(types)
    print(f"{names}: {len(runs)} runs differ by {worst:.1e} at most; {'; '.join(said)}")


onnxruntime.set_default_logger_severity(4)
for case in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    check(pathlib.Path(case["directory"]), case["runs"])
