"""What the local Hub sends back."""

from __future__ import annotations

import json
from typing import Any


class Answer(Exception):
    """What to send back; raised where something is refused."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refused(status: int, message: str, code: str = "") -> Answer:
    headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
    return Answer(status, {"error": message}, **headers)
