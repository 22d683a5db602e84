"""The addresses of a Hub that huggingface_hub 2.4 asks for when it publishes and downloads a model."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_answer import Answer, refused
from hub_state import Blob, Conflict, Missing, Repository, State, is_large
from hub_storage import SIGNATURE, Storage

PAGE = 7  # entries of a tree listing, so that the client has to turn pages


class Api(Storage):
    """One request. `url` is how the caller sees the server, `storage` the same by another name."""

    def __init__(
        self, state: State, token: str | None, url: str, storage: str, part_bytes: int | None
    ) -> None:
        self.state, self.token, self.url, self.storage = state, token, url, storage
        self.part_bytes = part_bytes

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        split = urlsplit(target)
        self.target, self.query = target, parse_qs(split.query)
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body
        for pattern, serve in ROUTES:
            found = re.fullmatch(pattern, f"{method} {split.path}")
            if found:
                return self._served(serve, [unquote(group) for group in found.groups()])
        return refused(404, "no such address")

    def _served(self, serve: Callable[..., Answer], arguments: list[str]) -> Answer:
        try:
            return serve(self, *arguments)
        except Answer as answer:
            return answer
        except Conflict:
            return refused(412, "A commit has happened since. Please refresh and try again.")
        except Missing as missing:
            code = str(missing)
            message = "A file with this name doesn't exist" if code == "EntryNotFound" else code
            return refused(422 if code == "ObjectNotFound" else 404, message, code)

    def known(self) -> bool:
        """Whether the caller showed a valid token; a wrong one is refused whatever was asked for."""
        given = self.headers.get("authorization")
        if given is not None and given != f"Bearer {self.token}":
            raise refused(401, "Invalid credentials in Authorization header")
        return given is not None

    def repository(self, name: str, *, write: bool = False) -> Repository:
        known = self.known()
        found = self.state.repositories.get(name)
        if not known and (write or found is None or found.private):
            raise refused(401, "Invalid username or password.")
        if found is None:
            raise refused(404, "Repository not found", "RepoNotFound")
        return found

    def create(self) -> Answer:
        if not self.known():
            raise refused(401, "Invalid username or password.")
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.state.repositories:
            return Answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        self.state.create(name, private=wanted.get("visibility") == "private")
        return Answer(200, {"url": f"{self.url}/{name}"})

    def info(self, name: str, revision: str = "main") -> Answer:
        repository = self.repository(name)
        found = repository.revision(revision)
        files = [{"rfilename": path} for path in found.tree]
        return Answer(
            200,
            {"id": name, "sha": found.oid, "private": repository.private, "tags": [], "siblings": files},
        )

    def refs(self, name: str) -> Answer:
        repository = self.repository(name)

        def shown(kind: str, names: dict[Any, str]) -> list[dict[str, str]]:
            return [
                {"name": str(key), "ref": f"refs/{kind}/{key}", "targetCommit": oid}
                for key, oid in names.items()
            ]

        body = {"branches": shown("heads", repository.branches), "converts": []}
        body |= {"tags": shown("tags", repository.tags), "pullRequests": shown("pr", repository.pulls)}
        return Answer(200, body)

    def tree(self, name: str, revision: str) -> Answer:
        found = self.repository(name).revision(revision)
        folders = {path.rpartition("/")[0] for path in found.tree if "/" in path}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
            for path in sorted(folders)
        ]
        entries += [_entry(path, blob) for path, blob in sorted(found.tree.items())]
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            where = self.url + urlsplit(self.target).path
            headers["Link"] = f'<{where}?recursive=true&cursor={start + PAGE}>; rel="next"'
        return Answer(200, entries[start : start + PAGE], **headers)

    def paths_info(self, name: str, revision: str) -> Answer:
        found = self.repository(name).revision(revision)
        asked = parse_qs(self.body.decode("utf-8")).get("paths", [])
        return Answer(200, [_entry(path, found.tree[path]) for path in asked if path in found.tree])

    def validate_yaml(self) -> Answer:
        head = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        try:
            facts = yaml.safe_load(head[1]) if head else {}
            good = isinstance(facts, dict) and isinstance(facts.get("license", ""), str)
        except yaml.YAMLError:
            good = False
        if good:
            return Answer(200, {"errors": [], "warnings": []})
        return Answer(400, {"errors": [{"message": '"license" must be a string'}], "warnings": []})

    def preupload(self, name: str, revision: str) -> Answer:
        tree = self.repository(name, write=True).revision(revision).tree
        wanted = json.loads(self.body)
        ignored = wanted.get("gitIgnore")
        if ignored is None and ".gitignore" in tree:
            ignored = self.state.content(tree[".gitignore"]).decode("utf-8")
        files = []
        for file in wanted["files"]:
            path, there = file["path"], tree.get(file["path"])
            large = is_large(path, file["size"], base64.b64decode(file["sample"]))
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": path.rpartition("/")[2] in (ignored or "").splitlines(),
                    **({"oid": there.large or there.oid} if there else {}),
                }
            )
        return Answer(200, {"files": files})

    def commit(self, name: str, branch: str) -> Answer:
        repository = self.repository(name, write=True)
        head, *lines = [json.loads(line) for line in self.body.splitlines()]
        at = repository.branches[branch]
        base = head["value"].get("parentCommit", at)
        wants_pull = "create_pr" in self.query
        if base != at and not wants_pull:
            raise Conflict
        oid = repository.commit(self.state.apply(repository, lines, base), base, head["value"]["summary"])
        body = {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}
        if wants_pull:
            number = len(repository.pulls) + 1
            repository.pulls[number] = oid
            body["pullRequestUrl"] = f"{self.url}/{name}/discussions/{number}"
        else:
            repository.branches[branch] = oid
        return Answer(200, body)

    def tag(self, name: str, revision: str) -> Answer:
        repository = self.repository(name, write=True)
        found, tag = repository.revision(revision), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise refused(409, f"Tag reference '{tag}' already exists")
        repository.tags[tag] = found.oid
        return Answer(200, {})

    def discussions(self, name: str) -> Answer:
        repository = self.repository(name)
        shown = [
            {
                "num": number,
                "title": repository.revisions[oid].title,
                "status": "open",
                "isPullRequest": True,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "repo": {"name": name, "type": "model"},
                "author": {"name": "someone"},
            }
            for number, oid in repository.pulls.items()
            if number not in repository.closed
        ]
        return Answer(200, {"discussions": shown, "count": len(shown), "start": 0})

    def resolve(self, name: str, revision: str, path: str) -> Answer:
        found = self.repository(name).revision(revision)
        blob = found.tree.get(path)
        if blob is None:
            raise Missing("EntryNotFound")
        headers = {"X_Repo_Commit": found.oid, "Accept_Ranges": "bytes"}
        if blob.large is None:
            return Answer(200, self.state.content(blob), ETag=f'"{blob.oid}"', **headers)
        headers |= {"X_Linked_ETag": f'"{blob.large}"', "X_Linked_Size": str(blob.size)}
        return Answer(302, b"", Location=f"{self.storage}/{blob.large}?{SIGNATURE}", **headers)


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    large = {"lfs": {"oid": blob.large, "size": blob.size, "pointerSize": 130}} if blob.large else {}
    return {"type": "file", "path": path, "size": blob.size, "oid": blob.oid, **large}


_NAME = r"([\w.-]+/[\w.-]+)"
_MODEL = rf"/api/models/{_NAME}"
_PART = r"([^/]+)"
ROUTES: tuple[tuple[str, Callable[..., Answer]], ...] = (
    (r"POST /api/repos/create", Api.create),
    (r"POST /api/validate-yaml", Api.validate_yaml),
    (rf"GET {_MODEL}", Api.info),
    (rf"GET {_MODEL}/revision/{_PART}", Api.info),
    (rf"GET {_MODEL}/refs", Api.refs),
    (rf"GET {_MODEL}/tree/{_PART}", Api.tree),
    (rf"POST {_MODEL}/paths-info/{_PART}", Api.paths_info),
    (rf"POST {_MODEL}/preupload/{_PART}", Api.preupload),
    (rf"POST {_MODEL}/commit/{_PART}", Api.commit),
    (rf"POST {_MODEL}/tag/{_PART}", Api.tag),
    (rf"GET {_MODEL}/discussions", Api.discussions),
    (rf"GET {_MODEL}/xet-(read|write)-token/{_PART}", Api.xet_token),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", Api.batch),
    (rf"POST /{_NAME}\.git/info/lfs/verify", Api.verify),
    (rf"PUT /storage/{_PART}", Api.put),
    (rf"PUT /storage/{_PART}/(\d+)", Api.put),
    (rf"POST /storage/{_PART}/complete", Api.complete),
    (rf"(?:GET|HEAD) /storage/{_PART}", Api.get),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/{_PART}/(.+)", Api.resolve),
)
