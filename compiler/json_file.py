"""A checkpoint's JSON files, read strictly: one object per file, no key twice, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from editspec.errors import InputError

MAX_BYTES = 64 * 2**20  # the largest we meet, a tokenizer's, has about 4 MB


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `InputError` for everything else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise InputError(str(path), f"is larger than {MAX_BYTES // 2**20} MiB, too large for a configuration")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not valid JSON: {error or 'nested too deep'}") from error
    if not isinstance(value, dict):
        raise InputError(str(path), "is not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may take different ones of two equal keys, so there may be none."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} occurs twice")
        result[key] = value
    return result


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number in JSON")
