"""The evaluator behind "onnx-detector": object detectors as ultralytics exports them (NudeNet among them).

A picture's score for a label is the best box's. Pictures are RGB, padded with black at the right and below
to a square; a detector has no "nothing" class, so only the threshold decides.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.evaluators.evaluator import Evaluator
from compiler.onnx_runtime import onnxruntime
from editspec.errors import InputError

if TYPE_CHECKING:
    from compiler.evaluators.evaluator import Images, Scores

DEFAULT_SIDE = 320  # where neither the model's input nor its metadata says
BOX = 4  # centre x, centre y, width, height come before the labels' scores


class OnnxDetector(Evaluator):
    """A file *.onnx with its label names in the metadata, or a folder with one such file."""

    adapter: ClassVar[str] = "onnx-detector"
    exclusive: ClassVar[bool] = False

    def files(self) -> Sequence[Path]:
        found = sorted(self.path.glob("*.onnx")) if self.path.is_dir() else [self.path]
        if len(found) != 1 or not found[0].is_file():
            raise self.refuse(f"has {len(found)} files *.onnx", "give the one file")
        return found

    @cached_property
    def _session(self) -> Any:
        try:
            runtime = onnxruntime()
        except InputError as error:
            raise self.refuse("needs ONNX Runtime", error.remedy) from error
        options = runtime.SessionOptions()
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        # onnxruntime's errors share no base class but Exception, and each names the file's fault
        try:
            return runtime.InferenceSession(str(self.files()[0]), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise self.refuse(f"cannot be loaded: {error}", "check its file") from error

    @cached_property
    def labels(self) -> tuple[str, ...]:
        text = self._session.get_modelmeta().custom_metadata_map.get("names", "")
        try:
            names = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise self.refuse("its metadata has no readable 'names'", "export it with its labels") from error
        labels = tuple(str(names[i]) for i in sorted(names)) if isinstance(names, dict) else tuple(names)
        if not labels or len(set(labels)) < len(labels):
            raise self.refuse("its metadata names no labels, or one twice", "export it with its labels")
        return labels

    @cached_property
    def side(self) -> int:
        """Height and width of what the network reads, in pixels."""
        shape = self._session.get_inputs()[0].shape
        if isinstance(shape[-1], int) and shape[-1] > 0:
            return shape[-1]
        size = self._session.get_modelmeta().custom_metadata_map.get("imgsz", "")
        digits = [int(part) for part in size.strip("[]").split(",") if part.strip().isdigit()]
        return digits[-1] if digits else DEFAULT_SIDE

    def score(self, images: Images) -> Scores:
        import numpy as np

        name = self._session.get_inputs()[0].name
        rows = []
        for image in images:  # one by one: exported batch sizes are often fixed to 1
            outputs = self._session.run(None, {name: square(image, self.side)})
            rows.append(best_boxes(np.asarray(outputs[0]), len(self.labels)))
        if any(row is None for row in rows):
            raise self.refuse(
                f"does not answer with boxes of 4 + {len(self.labels)} numbers",
                "export it without non-maximum suppression",
            )
        scores: Scores = np.stack([row for row in rows if row is not None])
        return scores


def square(image: Images, side: int) -> Scores:
    """uint8 (height, width, 3) -> fp32 (1, 3, side, side) in [0, 1], padded right and below."""
    import numpy as np
    from PIL import Image

    height, width = image.shape[:2]
    longest = max(height, width)
    canvas = np.zeros((longest, longest, 3), np.uint8)
    canvas[:height, :width] = image
    resized = Image.fromarray(canvas).resize((side, side), Image.Resampling.BILINEAR)
    pixels: Scores = np.ascontiguousarray(np.asarray(resized, np.float32).transpose(2, 0, 1)[None])
    return pixels / np.float32(255)


def best_boxes(output: Scores, labels: int) -> Scores | None:
    """(labels,) best score over the boxes of (1, 4 + labels, boxes) or transposed; None for other shapes."""
    if output.ndim != 3 or output.shape[0] != 1 or BOX + labels not in output.shape[1:]:
        return None
    boxes = output[0] if output.shape[1] == BOX + labels else output[0].T
    best: Scores = boxes[BOX:].max(axis=1).astype("float32")
    return best
