"""Canonical JSON (RFC 8785) and its digest: two specs that mean the same have the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

LARGEST_INTEGER = 2**53 - 1  # I-JSON (RFC 7493): beyond it readers that use doubles lose digits


def canonical(document: Any) -> bytes:
    """The UTF-8 bytes of a JSON value in RFC 8785 form. ValueError for what that form cannot hold."""
    return _written(document).encode()


def digest(document: Any) -> str:
    """sha256 of the canonical form, in hex."""
    return hashlib.sha256(canonical(document)).hexdigest()


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise ValueError(f"{value} is beyond 2^53 - 1; write it as a string")
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        # RFC 8785 3.2.3 sorts keys by UTF-16 code units, which is not the order of code points
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return (
            "{"
            + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_written(value[key])}" for key in keys)
            + "}"
        )
    raise ValueError(f"{type(value).__name__} has no JSON form")


def _number(value: float) -> str:
    """ECMAScript's Number.prototype.toString, which RFC 8785 prescribes."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if 0 < point <= 21:
        padded = digits.ljust(point, "0")
        return sign + padded[:point] + ("." + padded[point:] if len(padded) > point else "")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    power = point - 1
    tail = "." + digits[1:] if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if power > 0 else '-'}{abs(power)}"
