"""What the local Hub remembers: repositories with commits, branches, tags, pull requests; large files."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The patterns that a new repository's .gitattributes gives to large file storage.
LARGE = ("*.safetensors", "*.bin", "*.onnx", "*.onnx_data", "*.png", "*.zip", "*.gz", "*.pt")
LARGE_BYTES = 10 * 2**20
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode("ascii")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file in a tree: `oid` is git's, `large` the sha256 of one in large file storage."""

    oid: str
    size: int
    large: str | None = None


@dataclass(frozen=True)
class Revision:
    """A commit."""

    oid: str
    parent: str | None
    title: str
    tree: Mapping[str, Blob]


class Conflict(Exception):
    """The branch is not where the commit was made for."""


class Missing(Exception):
    """No such branch, tag, commit, file or object; the Hub's code for it."""


@dataclass
class Repository:
    """One model repository."""

    private: bool
    revisions: dict[str, Revision] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, str] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def revision(self, name: str) -> Revision:
        number = name.removeprefix("refs/pr/")
        oid = (
            self.branches.get(name)
            or self.tags.get(name)
            or (self.pulls.get(int(number)) if number.isdigit() and name != number else None)
            or name
        )
        if oid not in self.revisions:
            raise Missing("RevisionNotFound")
        return self.revisions[oid]

    def commit(self, tree: Mapping[str, Blob], parent: str | None, title: str) -> str:
        facts = repr((sorted(tree.items()), parent, title))
        oid = hashlib.sha1(facts.encode("utf-8")).hexdigest()
        self.revisions[oid] = Revision(oid, parent, title, dict(tree))
        return oid


@dataclass
class State:
    """Everything; `room` is what is left of the storage quota, in bytes."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # by git's name
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)  # unfinished uploads in parts
    room: float = float("inf")
    xet: str | None = None  # the folder of Xet's chunks, where it is offered

    def create(self, name: str, *, private: bool) -> Repository:
        repository = self.repositories[name] = Repository(private)
        first = repository.commit({".gitattributes": self.keep(ATTRIBUTES)}, None, "initial commit")
        repository.branches["main"] = first
        return repository

    def keep(self, data: bytes) -> Blob:
        """Store the content of a small file."""
        oid = git_blob(data)
        self.blobs[oid] = data
        return Blob(oid, len(data))

    def point(self, sha256: str, size: int) -> Blob:
        """Name a large file that was uploaded."""
        if self.xet is None and (sha256 not in self.objects or len(self.objects[sha256]) != size):
            raise Missing("ObjectNotFound")
        return Blob(git_blob(POINTER.format(sha256, size).encode("ascii")), size, sha256)

    def content(self, blob: Blob) -> bytes:
        return self.objects[blob.large] if blob.large else self.blobs[blob.oid]

    def store(self, sha256: str, data: bytes) -> bool:
        """Keep an uploaded large file; False if it is not what its name says."""
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        if sha256 not in self.objects:
            self.room -= len(data)
        self.objects[sha256] = data
        return True

    def apply(self, repository: Repository, lines: list[dict[str, Any]], base: str) -> dict[str, Blob]:
        """The tree that the operations of a commit make of the tree of `base`."""
        tree = dict(repository.revisions[base].tree)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = self.keep(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.point(value["oid"], value["size"])
            elif line["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise Missing("EntryNotFound")
            else:
                raise Missing("UnknownOperation")
        return tree

    def someone_commits(self, name: str, file: str = "notes.txt", data: bytes = b"a note\n") -> str:
        """Another client's commit to main."""
        repository = self.repositories[name]
        head = repository.branches["main"]
        data += b"%d" % len(repository.revisions)
        tree = {**repository.revisions[head].tree, file: self.keep(data)}
        repository.branches["main"] = repository.commit(tree, head, "someone else")
        return repository.branches["main"]


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file belongs into large file storage: by name, by size, or because it is no text."""
    if size >= LARGE_BYTES or any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for pattern in LARGE):
        return True
    return b"\0" in sample
