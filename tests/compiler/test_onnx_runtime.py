from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.onnx_runtime import onnxruntime
from editspec import InputError

ONE_RUN = """
from compiler.onnx_runtime import onnxruntime
import onnx
from onnx import TensorProto, helper
ins, outs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", [ins], [outs])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(session.run(None, {"x": __import__("numpy").ones(1, "float32")})[0])
"""


def test_a_run_leaves_no_trace_in_the_users_home(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")} | home
    done = subprocess.run(
        [sys.executable, "-c", ONE_RUN], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[1.]"
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"excise\[onnx\]"):
        onnxruntime()
