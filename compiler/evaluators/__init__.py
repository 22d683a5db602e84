"""The models that look at pictures and say what they show: one file here = one adapter, found by walking.

A spec names its evaluators. Embedded base models bring theirs along, registered by whoever ships them.
Opening evaluators loads no model and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.evaluators.evaluator import Evaluator
from compiler.folder_walk import by_name, defined_in
from editspec.errors import InputError

if TYPE_CHECKING:
    import torch

    from editspec import EditSpec, EvaluatorRef

__all__ = ["Evaluator", "adapters", "open_evaluators", "register_embedded"]

_embedded: dict[str, Callable[[], Sequence[EvaluatorRef]]] = {}


def register_embedded(name: str, evaluators: Callable[[], Sequence[EvaluatorRef]]) -> None:
    """Let the base {"path": name} bring evaluators, for specs that name none. Their paths are absolute."""
    _embedded[name] = evaluators


def open_evaluators(
    spec: EditSpec, spec_dir: Path | None = None, device: torch.device | None = None
) -> tuple[Evaluator, ...]:
    """The spec's evaluators, else those of its embedded base, else (). Raises `InputError`.

    Paths are relative to `spec_dir`, else to the spec's own folder. Labels are read now, a model is loaded
    at its first picture.
    """
    refs: Sequence[EvaluatorRef] = spec.evaluators
    if not refs and (embedded := _embedded.get(getattr(spec.base, "path", ""))):
        refs = embedded()
    return tuple(_open(ref, spec_dir or spec.folder, device) for ref in refs)


def _open(ref: EvaluatorRef, spec_dir: Path, device: torch.device | None) -> Evaluator:
    known = adapters()
    if ref.adapter not in known:
        raise InputError(
            f"evaluator '{ref.id}'", f"no adapter '{ref.adapter}'", f"there are {', '.join(sorted(known))}"
        )
    path = spec_dir / ref.model if isinstance(ref.model, str) else _from_hub(ref)
    if not path.exists():
        where, remedy = f"evaluator '{ref.id}'", "give the model's folder or file"
        raise InputError(where, f"'{path}' does not exist", remedy)
    evaluator = known[ref.adapter](ref, path, device)
    for concept, label in evaluator.named.items():
        if evaluator.label_for(concept) is None:
            raise evaluator.refuse(f"has no label '{label}'", f"it has {', '.join(evaluator.labels[:20])}")
    return evaluator


def _from_hub(ref: EvaluatorRef) -> Path:
    """The folder of a pinned Hub repository, fetched if it is not in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert not isinstance(ref.model, str)
    wanted = ["*.json", "*.txt", "*.safetensors", "*.onnx"]
    try:
        folder = snapshot_download(ref.model.repo, revision=ref.model.revision, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"evaluator '{ref.id}'",
            f"cannot fetch {ref.model.repo} at {ref.model.revision}: {error}",
            "check the repository, the revision and the network",
        ) from error
    return Path(folder)


@cache
def adapters() -> dict[str, type[Evaluator]]:
    """Adapter name -> class, for all in this folder. A file that cannot be imported breaks the program."""
    every = defined_in(__name__, __path__, Evaluator)  # type: ignore[type-abstract]
    return by_name(((one.adapter, one) for _, classes in every for one in classes), "adapters")
