"""What is published: an artifact's files with their digests, set against what a repository holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import ATTESTATIONS, MANIFEST, SIGNATURE
from editspec.errors import InputError

SIGNED_LATER = frozenset({ATTESTATIONS, SIGNATURE})  # about a build, and no part of it
SERVERS_OWN = frozenset({".gitattributes"})  # the Hub writes it; no artifact has it
READ_WHOLE = 8 * 2**20  # bytes; up to here the very bytes that were hashed are sent


@dataclass(frozen=True)
class LocalFile:
    """One file to publish; `name` is its path in the artifact, with forward slashes."""

    name: str
    path: Path
    size: int
    sha256: str

    def content(self) -> bytes | Path:
        """What to send: for small files the bytes themselves, checked; for others the path."""
        if self.size > READ_WHOLE:
            return self.path
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InputError(str(self.path), "changed while it was published", "push again")
        return data

    def git_blob(self) -> str:
        """The name git gives this content: sha1 (hex) over a header with the size, then the bytes."""
        sha1 = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with self.path.open("rb") as file:
            while piece := file.read(2**20):
                sha1.update(piece)
        return sha1.hexdigest()


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository's revision; `sha256` only where the server keeps it as a large file."""

    name: str
    size: int
    git_blob: str
    sha256: str | None

    def holds(self, local: LocalFile) -> bool:
        """Whether the server's digest is that of `local`."""
        if self.size != local.size:
            return False
        return self.sha256 == local.sha256 if self.sha256 else self.git_blob == local.git_blob()


@dataclass(frozen=True)
class Release:
    """All files of an artifact; `digest` is its build's: the sha256 (hex) of its manifest."""

    files: tuple[LocalFile, ...]
    digest: str

    @classmethod
    def of(cls, folder: Path, digests: Mapping[str, str]) -> Release:
        """The files of `folder` that `digests` names, with their sha256, the manifest among them."""
        try:
            files = [
                LocalFile(name, folder / name, (folder / name).stat().st_size, digest)
                for name, digest in sorted(digests.items())
            ]
        except OSError as error:
            raise InputError(str(error.filename), f"cannot be read: {error.strerror}") from error
        return cls(tuple(files), digests[MANIFEST])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Changes:
    """What turns a repository's tree into the release, by file name."""

    add: tuple[str, ...]
    change: tuple[str, ...]
    remove: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.add or self.change or self.remove)

    @property
    def only_signature(self) -> bool:
        """Whether the build is the same and only what was signed over it differs."""
        return bool(self) and SIGNED_LATER.issuperset((*self.add, *self.change, *self.remove))

    def __str__(self) -> str:
        parts = [
            *(f"{name} is missing" for name in self.add),
            *(f"{name} differs" for name in self.change),
            *(f"{name} is not of the release" for name in self.remove),
        ]
        shown = ", ".join(parts[:5])
        return f"{shown} and {len(parts) - 5} more" if len(parts) > 5 else shown


def changes(release: Release, tree: Mapping[str, RemoteFile]) -> Changes:
    """What a commit on top of `tree` must do so that the repository holds the release and nothing else."""
    local = {file.name: file for file in release.files}
    return Changes(
        add=tuple(name for name in local if name not in tree),
        change=tuple(name for name, file in local.items() if name in tree and not tree[name].holds(file)),
        remove=tuple(sorted(tree.keys() - local.keys() - SERVERS_OWN)),
    )
