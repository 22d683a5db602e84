"""Where a build goes: refused early, built beside its place, and put there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler import atomic
from compiler.artifact import Artifact, is_artifact
from editspec.errors import InputError

REJECTED = "rejected"

# What a disk or its owner may refuse, in the words that `what` gets and with what to do about it.
REFUSALS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another disk"),
    errno.EFBIG: ("this file system cannot hold a file so large", "choose another disk"),
    errno.EACCES: ("no permission to write here", "choose a folder that you may write to"),
    errno.EPERM: ("no permission to write here", "choose a folder that you may write to"),
    errno.EROFS: ("the disk is read-only", "choose a folder that you may write to"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another path"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


@dataclass(frozen=True)
class Output:
    """The place of one build. `out` is absolute; its last part is no link."""

    out: Path
    force: bool

    @classmethod
    def claimed(
        cls,
        out: Path,
        *,
        force: bool,
        base: Path,
        needed_bytes: int,
        replaceable: Callable[[Path], bool] = is_artifact,
    ) -> Output:
        """Refuse, before any work: a path that exists (without `force`), that is or holds the base, that
        Excise did not build (is not `replaceable`), or whose disk has not `needed_bytes` left."""
        place = out.absolute().parent.resolve() / out.absolute().name
        if place.name in ("", ".."):
            raise InputError(str(out), "not a name for a new folder", "end the path in the artifact's name")
        base = base.resolve()
        if base.is_relative_to(place.resolve()) or place.resolve().is_relative_to(base):
            raise InputError(
                str(out), "the base checkpoint lies there", "choose a folder apart from the base"
            )
        if os.path.lexists(place):
            _require_replaceable(out, place, force, replaceable)
        rejects = place.parent / REJECTED / place.name
        if os.path.lexists(rejects) and not is_artifact(rejects):
            raise InputError(str(rejects), "is where a rejected artifact goes, and not one", "move it away")
        require_space(out, place, needed_bytes)
        return cls(place, force)

    @contextlib.contextmanager
    def building(self) -> Iterator[Artifact]:
        """A fresh folder beside `out` to build in. Whatever is not delivered disappears on leaving."""
        made = _make_parents(self.out.parent)
        try:
            with atomic.claim(self.out.with_name(f".{self.out.name}.building"), wait=False) as folder:
                folder.chmod(0o755)
                yield Artifact(folder)
        except atomic.Claimed as error:
            raise InputError(str(self.out), "another build is writing it", "wait until it ends") from error
        finally:
            for parent in made:  # those that we made and that stayed empty
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def deliver(self, built: Artifact) -> Artifact:
        """Put the finished artifact at `out` in one step."""
        try:
            atomic.publish(built.folder, self.out, replace=self.force)
        except FileExistsError as error:
            raise InputError(
                str(self.out), "appeared while compiling", "choose another path or --force"
            ) from error
        return Artifact(self.out)

    def reject(self, built: Artifact) -> Artifact:
        """Keep an artifact that failed a gate for study, in the folder `rejected` beside `out`."""
        place = self.out.parent / REJECTED / self.out.name
        place.parent.mkdir(exist_ok=True)
        atomic.publish(built.folder, place, replace=True)
        return Artifact(place)


@contextlib.contextmanager
def storage_refusals(where: Path) -> Iterator[None]:
    """Turn a full or forbidding disk into an `InputError` about the file, or else about `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        what, remedy = REFUSALS[error.errno]
        raise InputError(str(error.filename or where), what, remedy) from error


def _require_replaceable(out: Path, place: Path, force: bool, replaceable: Callable[[Path], bool]) -> None:
    if not force:
        raise InputError(str(out), "exists already", "choose another path, or replace it with --force")
    if place.is_symlink() or not replaceable(place):
        raise InputError(
            str(out), "exists and was not built by Excise, so --force leaves it alone", "choose another path"
        )


def require_space(out: Path, place: Path, needed_bytes: int) -> None:
    """Refuse a place (`out`, as the user wrote it) that is read-only or has not `needed_bytes` left."""
    there = next(parent for parent in place.parents if parent.exists())
    if not there.is_dir():
        raise InputError(str(there), *REFUSALS[errno.ENOTDIR])
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(str(there), *REFUSALS[errno.EACCES])
    total, _, free = shutil.disk_usage(there)
    if total and free < needed_bytes:  # some virtual file systems tell of no size at all
        what = f"needs {needed_bytes / 1e9:.1f} GB, but the disk has {free / 1e9:.1f} GB left"
        raise InputError(str(out), what, "free some space, or choose another disk")


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder`; the folders that were not there before, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
