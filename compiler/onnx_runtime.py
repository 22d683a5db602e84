"""ONNX Runtime, loaded only through here: by default it reports home, and Excise tells nobody anything."""

from __future__ import annotations

import os
from typing import Any

from editspec.errors import InputError


def onnxruntime() -> Any:
    """The module `onnxruntime`. `InputError` where it is not installed.

    Since 1.29 its Linux and macOS builds send usage events and keep an identifier and a cache in the user's
    home. That is switched off, unless ORT_DISABLE_TELEMETRY is set already; it is read once, when
    the library is first imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as module
    except ImportError as error:
        remedy = "pip install 'excise[onnx]', or 'excise[onnx-gpu]' for CUDA"
        raise InputError("onnxruntime", "ONNX Runtime is not installed", remedy) from error
    return module
