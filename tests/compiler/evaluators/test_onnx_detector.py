from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.evaluators.onnx_detector import OnnxDetector
from editspec import EvaluatorRef, InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    return save_detector(tmp_path / "colours.onnx")


def save_detector(path: Path, names: str = "{0: 'RED', 1: 'GREEN', 2: 'BLUE'}") -> Path:
    """One box over the whole picture whose score for a colour is that channel's mean."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["scores"]),
        helper.make_node("Concat", ["box", "scores"], ["output0"], axis=1),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "axes": np.array([2, 3], np.int64),
        "shape": np.array([1, 3, 1], np.int64),
        "box": np.zeros((1, 4, 1), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 7, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"names": names, "imgsz": "[32, 32]"})
    onnx.save(model, path)
    return path


def opened(path: Path, **fields: Any) -> OnnxDetector:
    return OnnxDetector(EvaluatorRef(id="detector", model=str(path), adapter="onnx-detector", **fields), path)


def test_a_detector_scores_rgb_pictures_by_the_labels_in_its_metadata(detector: Path) -> None:
    evaluator = opened(detector)
    image = np.full((1, 64, 64, 3), (255, 51, 0), np.uint8)
    assert evaluator.labels == ("RED", "GREEN", "BLUE")
    assert evaluator.side == 32
    assert evaluator.score(image)[0].tolist() == pytest.approx([1.0, 0.2, 0.0], abs=1e-6)


def test_only_the_threshold_decides_what_a_detector_sees(detector: Path) -> None:
    evaluator = opened(detector, threshold=0.5, labels={"warmth": "RED"})
    scores = np.array([[0.4, 0.1, 0.0], [0.6, 0.9, 0.0]], np.float32)
    label = evaluator.label_for("warmth")
    assert label is not None
    assert evaluator.shows(scores, label).tolist() == [False, True]


def test_a_folder_with_one_detector_will_do(detector: Path) -> None:
    assert opened(detector.parent).labels == ("RED", "GREEN", "BLUE")
    save_detector(detector.with_name("second.onnx"))
    with pytest.raises(InputError, match=r"has 2 files \*.onnx"):
        _ = opened(detector.parent).labels


@pytest.mark.parametrize("names", ["", "__import__('os')", "{0: 'A', 1: 'A'}"])
def test_metadata_without_plain_label_names_is_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(InputError, match="metadata"):
        _ = opened(save_detector(tmp_path / "odd.onnx", names)).labels


def test_labels_that_do_not_fit_the_output_are_refused(tmp_path: Path) -> None:
    evaluator = opened(save_detector(tmp_path / "odd.onnx", "{0: 'A', 1: 'B'}"))
    with pytest.raises(InputError, match="does not answer with boxes of 4 \\+ 2 numbers"):
        evaluator.score(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_broken_file_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot be loaded"):
        _ = opened(path).labels
