"""Large files on the local Hub: the LFS batch, uploads whole or in parts to a signed address, downloads."""

from __future__ import annotations

import hashlib
import json
from math import ceil
from typing import Any

from hub_answer import Answer, refused
from hub_state import Repository, State

SIGNATURE = "X-Amz-Signature=0123456789abcdef"
FULL = "Private repository storage limit reached, please upgrade your plan to increase it."


class Storage:
    """The part of a request's server that deals with large files."""

    state: State
    url: str
    storage: str
    part_bytes: int | None
    target: str
    headers: dict[str, str]
    body: bytes

    def repository(self, name: str, *, write: bool = False) -> Repository:
        raise AssertionError("the routes know it")

    def batch(self, name: str) -> Answer:
        self.repository(name, write=True)
        wanted = json.loads(self.body)["objects"]
        new = [one for one in wanted if one["oid"] not in self.state.objects]
        if sum(one["size"] for one in new) > self.state.room:
            raise refused(403, FULL)
        objects = []
        for one in wanted:
            actions = {"actions": self._upload(name, one["oid"], one["size"])} if one in new else {}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, name: str, oid: str, size: int) -> dict[str, Any]:
        where = f"{self.storage}/{oid}"
        verify = {"href": f"{self.url}/{name}.git/info/lfs/verify"}
        if self.part_bytes is None or size <= self.part_bytes:
            return {"upload": {"href": f"{where}?{SIGNATURE}", "header": {}}, "verify": verify}
        self.state.parts[oid] = {}
        count = ceil(size / self.part_bytes)
        header = {str(number): f"{where}/{number}?{SIGNATURE}" for number in range(1, count + 1)}
        upload = {"href": f"{self.storage}/{oid}/complete?{SIGNATURE}"}
        header["chunk_size"] = str(self.part_bytes)
        return {"upload": {**upload, "header": header}, "verify": verify}

    def put(self, oid: str, part: str | None = None) -> Answer:
        if SIGNATURE not in self.target or "authorization" in self.headers:
            raise refused(403, "Only one auth mechanism allowed")
        if part is not None:
            self.state.parts[oid][int(part)] = self.body
        elif not self.state.store(oid, self.body):
            raise refused(400, "BadDigest")
        return Answer(200, b"", ETag=f'"{hashlib.md5(self.body).hexdigest()}"')

    def complete(self, oid: str) -> Answer:
        parts = self.state.parts.get(oid, {})
        named = {one["partNumber"]: one["etag"].strip('"') for one in json.loads(self.body)["parts"]}
        if named != {number: hashlib.md5(part).hexdigest() for number, part in parts.items()}:
            raise refused(400, "InvalidPart")
        if not self.state.store(oid, b"".join(parts[number] for number in sorted(parts))):
            raise refused(400, "BadDigest")
        return Answer(200, {})

    def verify(self, name: str) -> Answer:
        self.repository(name, write=True)
        wanted = json.loads(self.body)
        self.state.point(wanted["oid"], wanted["size"])
        return Answer(200, {})

    def get(self, oid: str) -> Answer:
        return Answer(200, self.state.objects[oid], ETag=f'"{oid}"')

    def xet_token(self, name: str, kind: str, revision: str) -> Answer:
        """Where Xet keeps its chunks: a folder, by the client library's own scheme for such."""
        self.repository(name, write=kind == "write")
        if self.state.xet is None:
            return refused(404, "Xet is not offered here")
        facts, expires = {"casUrl": f"local://{self.state.xet}", "accessToken": "of-xet"}, 4_102_444_800
        headers = {"X_Xet_Cas_Url": facts["casUrl"], "X_Xet_Access_Token": facts["accessToken"]}
        return Answer(200, {**facts, "exp": expires}, **headers, X_Xet_Token_Expiration=str(expires))
