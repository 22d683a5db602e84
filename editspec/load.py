"""Text in, checked spec out: JSON, then structure, then meaning, and every mistake of a stage at once."""

from __future__ import annotations

from pathlib import Path

from editspec.build import build
from editspec.defaults import with_defaults
from editspec.errors import Diagnostic, InputError, SpecErrors, closest
from editspec.model import EditSpec
from editspec.semantics import semantic_errors
from editspec.source import Source
from editspec.structure import structure_errors

LARGEST_FILE = 16 * 2**20  # bytes; a spec of 10,000 edits is about 1 MB


def load_spec(path: str | Path) -> EditSpec:
    """Read and check a spec. InputError if there is no readable file, SpecErrors with all its mistakes."""
    path = Path(path)
    return parse_spec(_decoded(path, _read(path)), str(path))


def parse_spec(text: str, file: str = "<spec>") -> EditSpec:
    """Check a spec's text. SpecErrors with all its mistakes; `file` is what they call it."""
    source = Source(file, text)
    if not source.scan.complete:
        raise SpecErrors(source.flaws())
    flaws = source.flaws()
    spoilt = {flaw.pointer for flaw in flaws}  # what stands there is no value to judge
    mistakes = flaws + [error for error in structure_errors(source) if error.pointer not in spoilt]
    if mistakes:
        raise SpecErrors(mistakes)
    document = with_defaults(source.scan.value)
    mistakes = semantic_errors(source, document)
    if mistakes:
        raise SpecErrors(mistakes)
    return build(document, source)


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            specs = sorted(entry.name for entry in path.iterdir() if entry.suffix == ".json")
            remedy = f"it holds {', '.join(specs[:5])}" if specs else "give the JSON file itself"
            raise InputError(str(path), "this is a folder, not a spec", remedy)
        if path.exists() and path.stat().st_size > LARGEST_FILE:
            raise InputError(str(path), f"larger than {LARGEST_FILE >> 20} MiB; a spec is a small JSON file")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(str(path), "no such file", _nearby(path)) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from None


def _nearby(path: Path) -> str:
    """The file that was probably meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder '{folder}' either"
    guess = closest(path.name, [entry.name for entry in folder.iterdir() if entry.is_file()])
    return f"did you mean '{folder / guess}'?" if guess else ""


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(str(path), "this is UTF-16; a spec is UTF-8", "save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")  # some editors mark UTF-8 so; it means nothing
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        stop = data.find(b"\n", error.start) % (len(data) + 1)
        before = data[start : error.start].decode()
        raise SpecErrors(
            [
                Diagnostic(
                    file=str(path),
                    line=data.count(b"\n", 0, error.start) + 1,
                    column=len(before) + 1,
                    pointer="",
                    message=f"byte 0x{data[error.start]:02x} is no UTF-8",
                    remedy="save the file as UTF-8",
                    source_line=data[start:stop].decode(errors="replace"),
                )
            ]
        ) from None
