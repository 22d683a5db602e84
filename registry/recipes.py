"""A stored file's recipe: the blobs that make it up, in order, itself a blob."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from registry.blobs import BlobStore, Damaged

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """(sha256, size in bytes) of each blob of a file, in the file's order."""

    blobs: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(size for _, size in self.blobs)

    def encoded(self) -> bytes:
        """The recipe as it is stored; equal recipes give equal bytes."""
        document = {"recipe": VERSION, "blobs": [list(blob) for blob in self.blobs]}
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def read(cls, store: BlobStore, digest: str) -> Recipe:
        """The recipe with this digest. Raises `Damaged` where it is missing or unreadable."""
        return cls.decoded(digest, store.get(digest))

    @classmethod
    def read_all(cls, store: BlobStore, digests: Sequence[str]) -> list[Recipe]:
        """Several at once, in this order. Raises `Damaged`."""
        return [
            cls.decoded(digest, data) for digest, data in zip(digests, store.get_all(digests), strict=True)
        ]

    @classmethod
    def decoded(cls, digest: str, data: bytes) -> Recipe:
        """What `encoded` gave. Raises `Damaged`."""
        try:
            document = json.loads(data)
            if document["recipe"] != VERSION:
                raise ValueError
            return cls(tuple((str(name), int(size)) for name, size in document["blobs"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(digest, "is no recipe that this Excise reads") from error
