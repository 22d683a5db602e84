"""A Hub on loopback that speaks the protocol of huggingface_hub 2.4, and breaks where it is told to.

    with LocalHub() as hub:
        hub.fail("commit", "lost")      # the next commit is made, but its answer never arrives
        push(...)                       # with HF_ENDPOINT=hub.endpoint and HF_TOKEN=TOKEN

Large files go by LFS (basic, or in parts above `part_bytes`), to a storage address with a signature in its
query and on another host name, as on the Hub; or by Xet to the folder that `state.xet` names. Where it
names none, set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from hub_answer import Answer
from hub_routes import Api
from hub_state import State

TOKEN = "hf_" + "localHubTestToken" * 2

FAULTS = {
    "unavailable": "503, nothing done",
    "reset": "the connection breaks while the request is being read",
    "failed": "done, but answered with 500",
    "lost": "done, but the connection breaks before the answer",
    "cut": "done, but the answer ends half-way",
    "conflict": "someone else commits first",
    "expired": "from now on the token is not valid any more",
    "full": "from now on the storage is full",
}


@dataclass
class Fault:
    """A kind of FAULTS, for the next `times` requests that match from request number `after` on."""

    match: re.Pattern[str]
    kind: str
    times: int
    after: int


class LocalHub:
    """The server; `requests` lists "METHOD path" of everything that was asked for, in order."""

    def __init__(self, *, part_bytes: int | None = None) -> None:
        self.state = State()
        self.token: str | None = TOKEN
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._part_bytes = part_bytes
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, match: str, kind: str, *, times: int = 1, after: int = 0) -> None:
        """Break requests whose "METHOD path" contains the pattern `match`, in the way `kind`."""
        assert kind in FAULTS
        self.faults.append(Fault(re.compile(match), kind, times, after))

    def heal(self) -> None:
        """No more faults; the token is valid again and the storage has room."""
        self.faults.clear()
        self.token, self.state.room = TOKEN, float("inf")

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds, without the server's own .gitattributes."""
        tree = self.state.repositories[repo_id].revision(revision).tree
        return {name: self.state.content(blob) for name, blob in tree.items() if name != ".gitattributes"}

    def asked(self, request: str) -> str | None:
        """Note a request; the kind of fault that it meets."""
        self.requests.append(request)
        for fault in self.faults:
            if fault.times and len(self.requests) > fault.after and fault.match.search(request):
                fault.times -= 1
                return fault.kind
        return None

    def answer(
        self, kind: str | None, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        """Serve one request, after what a fault changes in the world."""
        if kind == "conflict":
            for name in self.state.repositories:
                if f"/{name}/" in target:
                    self.state.someone_commits(name, "README.md")
        elif kind == "expired":
            self.token = None
        elif kind == "full":
            self.state.room = 0
        storage = self.endpoint.replace("127.0.0.1", "localhost") + "/storage"
        api = Api(self.state, self.token, self.endpoint, storage, self._part_bytes)
        return api.answer(method, target, headers, body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: LocalHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):  # a connection that was broken
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        hub = self.server.hub
        with hub.lock:
            kind = hub.asked(f"{self.command} {urlsplit(self.path).path}")
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "reset":
            self.rfile.read(length // 2)
            self._drop()
            return
        body = self.rfile.read(length) if length else b"".join(self._chunks())
        if kind == "unavailable":
            self._send(Answer(503, b"<html>busy</html>", Content_Type="text/html"))
            return
        with hub.lock:
            answer = hub.answer(kind, self.command, self.path, dict(self.headers.items()), body)
        if kind == "lost":
            self._drop()
        elif kind == "failed":
            self._send(Answer(500, {"error": "Internal Server Error"}))
        else:
            self._send(answer, cut=kind == "cut")

    do_HEAD = do_PUT = do_POST = do_GET

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

    def _send(self, answer: Answer, *, cut: bool = False) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
        for name, value in {**headers, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self._drop()

    def _drop(self) -> None:
        """Break the connection, at once and rudely."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile, self.wfile = io.BytesIO(), io.BytesIO()
        os.close(self.connection.detach())


@contextlib.contextmanager
def short_waits() -> Iterator[None]:
    """Let the client wait milliseconds, not seconds, between its own tries."""
    from huggingface_hub.utils import _http

    with patch.object(_http, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 500))):
        yield
