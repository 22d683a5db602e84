"""Blobs by sha256, in a local folder or an S3-compatible bucket; whole or absent, and checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from editspec.errors import InputError

THREADS = 8  # requests at once: an object store answers each slowly, many together fast
MARK = "registry.json"  # which registry the blobs belong to
LOCAL, S3 = "file", "s3"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_INSTALL = "pip install 'excise[registry]'"


class Damaged(Exception):
    """A blob that is missing or holds other bytes than its name says."""

    def __init__(self, digest: str, what: str) -> None:
        super().__init__(f"blob {digest[:12]} {what}")
        self.digest = digest
        self.what = what


class BlobStore:
    """The blobs below `url`: a folder's path, `file://...` or `s3://bucket/prefix`.

    A bucket's address and keys are those of its usual environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...),
    so no secret is ever in a URL. Every method raises `InputError` where the store refuses or is away.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol, self._files, self._root = _opened(url)

    @property
    def local(self) -> Path | None:
        """The folder, where it is one."""
        return Path(self._root) if self.protocol == LOCAL else None

    def put(self, digest: str, data: bytes) -> None:
        """Store `data` under its sha256. Killed at any instant, the blob is there wholly or not at all."""
        self._write(self._path(digest), data)

    def put_all(self, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Store several at once."""
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda blob: self.put(*blob), blobs):
                pass

    def get(self, digest: str) -> bytes:
        """The blob's bytes. Raises `Damaged` where it is missing or is not what its name says."""
        try:
            with self._refusals():
                data: bytes = self._files.cat_file(self._path(digest))
        except FileNotFoundError as error:
            raise Damaged(digest, "is missing") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise Damaged(digest, "holds other bytes than its name says")
        return data

    def get_all(self, digests: Iterable[str]) -> Iterator[bytes]:
        """The blobs in this order, a few read ahead. Raises `Damaged`."""
        wanted = iter(digests)
        with ThreadPoolExecutor(THREADS) as pool:
            running = [
                pool.submit(self.get, digest) for _, digest in zip(range(THREADS), wanted, strict=False)
            ]
            while running:
                data = running.pop(0).result()
                if (digest := next(wanted, None)) is not None:
                    running.append(pool.submit(self.get, digest))
                yield data

    def sizes(self) -> dict[str, int]:
        """Every blob that is there: sha256 -> bytes."""
        with self._refusals():
            self._files.invalidate_cache()
            try:
                found = self._files.find(f"{self._root}/blobs", detail=True)
            except FileNotFoundError:
                return {}
        names = ((path.rpartition("/")[2], facts["size"]) for path, facts in found.items())
        return {name: int(size) for name, size in names if _DIGEST.fullmatch(name)}

    def remove(self, digests: Iterable[str]) -> None:
        """Remove blobs; those that are not there are no error."""

        def remove_one(digest: str) -> None:
            with self._refusals(), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(digest))

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(remove_one, digests):
                pass

    def clear_incoming(self) -> None:
        """Remove what killed writers left half written; only while no one writes."""
        if self.local is not None:
            for path in (self.local / "incoming").glob("*"):
                path.unlink(missing_ok=True)

    def claim(self, registry: str, *, create: bool) -> None:
        """Make sure that these are the blobs of the registry with this id, or with `create` make them so.

        Without it a mistyped URL would let `gc` empty another registry's store.
        """
        mark = f"{self._root}/{MARK}"
        with self._refusals():
            try:
                found = json.loads(self._files.cat_file(mark))["id"]
            except FileNotFoundError:
                found = None
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.url}/{MARK}", "is damaged", "restore it from a backup") from error
        if found is None and create:
            self._write(mark, json.dumps({"registry": 1, "id": registry}).encode("ascii") + b"\n")
            return
        if found != registry:
            what = "belongs to another registry" if found else "holds no registry"
            raise InputError(self.url, what, "name the index and the store that belong together")

    def _path(self, digest: str) -> str:
        return f"{self._root}/blobs/{digest[:2]}/{digest}"

    def _write(self, path: str, data: bytes) -> None:
        with self._refusals():
            if self.protocol == LOCAL:
                self._write_local(Path(path), data)
                return
            try:
                self._files.pipe_file(path, data)  # one request, which S3 makes whole or not at all
            except FileNotFoundError as error:
                raise InputError(self.url, "there is no such bucket", "create it first") from error

    def _write_local(self, path: Path, data: bytes) -> None:
        incoming = Path(self._root) / "incoming"
        for folder in (incoming, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=incoming)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)  # there only where something went wrong

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What a store answers, in words; a missing file is for the caller to judge."""
        try:
            yield
        except (InputError, FileNotFoundError):
            raise
        except PermissionError as error:
            remedy = "check the folder's owner" if self.protocol == LOCAL else "check the keys and the bucket"
            raise InputError(self.url, "no permission to use this store", remedy) from error
        except OSError as error:
            raise InputError(self.url, f"the store fails: {_first_line(error)}") from error
        except Exception as error:
            if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
                remedy = "check AWS_ENDPOINT_URL and the keys of the environment"
                raise InputError(self.url, f"the store fails: {_first_line(error)}", remedy) from error
            raise


def _opened(url: str) -> tuple[str, Any, str]:
    """Protocol, file system and root of a URL."""
    protocol = url.partition("://")[0] if "://" in url else LOCAL
    if protocol not in (LOCAL, S3):
        raise InputError(url, f"no store is reached by {protocol}://", "give a folder or s3://bucket/prefix")
    try:
        from fsspec.core import url_to_fs

        if protocol == LOCAL and "://" not in url:
            url = str(Path(url).expanduser().absolute())
        # No caches: other processes write to the same store.
        options = {"use_listings_cache": False, "skip_instance_cache": True}
        files, root = url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(url, f"needs the package {error.name}, which is not here", _INSTALL) from error
    return protocol, files, str(root).rstrip("/")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
