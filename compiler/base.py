"""Opens the base model that a spec names: embedded, a local folder, or a Hub repository at one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from compiler.checkpoint import (
    LICENSES,
    MODEL_INDEX,
    STEMS,
    TOKENIZER_FILES,
    Checkpoint,
    read_components,
)
from compiler.licence import CARD
from compiler.weights import CONVERT, PICKLES, index_name, single_name
from editspec.errors import InputError
from editspec.model import HubBase, PathBase

_EMBEDDED: dict[str, Callable[[], Path]] = {}
_COMMIT = re.compile(r"[0-9a-f]{40}")

#: What a Hub snapshot needs beside weights; fetched first, for it tells which weights there are.
_SMALL_FILES = (
    MODEL_INDEX,
    CARD,
    *LICENSES,
    "*/config.json",
    "*/scheduler_config.json",
    "*/preprocessor_config.json",
    *(f"tokenizer{suffix}/{name}" for suffix in ("", "_2") for name in TOKENIZER_FILES),
)


def register_embedded(name: str, loader: Callable[[], Path]) -> None:
    """Make `{"path": name}` mean the folder that `loader` returns; called by the package that ships it."""
    _EMBEDDED[name] = loader


def open_base(base: PathBase | HubBase, spec_dir: Path) -> Checkpoint:
    """The base checkpoint of a spec that lies in `spec_dir`. Raises `InputError`.

    A Hub base is fetched into the Hub's own cache, only the files it needs; what is there already is taken
    from there without asking the network. A folder called as an embedded model is reached by "./name".
    """
    if isinstance(base, HubBase):
        return Checkpoint.open(_snapshot(base), base.variant)
    if base.path in _EMBEDDED:
        return Checkpoint.open(_EMBEDDED[base.path](), base.variant)
    return Checkpoint.open(spec_dir / Path(base.path).expanduser(), base.variant)


def weight_files(listing: Collection[str], components: Iterable[str], variant: str | None) -> list[str]:
    """Which weight files of a repository's `listing` make up the checkpoint of these `components`.

    For each the variant's own, else the plain ones. Raises `InputError`, naming the component only, where
    there are nothing but pickles; a component without any weights is left to `Checkpoint.open`.
    """
    wanted: list[str] = []
    for component in components:
        stem = STEMS.get(component)
        if stem is None:  # a tokenizer or scheduler, which has no weights
            continue
        inside = [name for name in listing if name.rpartition("/")[0] == component]
        found = _of_variant(inside, component, stem, variant) or _of_variant(inside, component, stem, None)
        pickles = sorted(name for name in inside if name.endswith(PICKLES))
        if pickles and not found:
            raise InputError(component, f"exists only as a pickle there ({pickles[0]})", CONVERT)
        wanted += found
    return wanted


def _of_variant(inside: Iterable[str], component: str, stem: str, variant: str | None) -> list[str]:
    single = f"{component}/{single_name(stem, variant)}"
    index = f"{component}/{index_name(stem, variant)}"
    # Both ways in which diffusers has written the shards of a variant.
    mark = rf"\.{re.escape(variant)}" if variant else ""
    numbers = r"-\d+-of-\d+"
    shard = re.compile(rf"{component}/{stem}({mark}{numbers}|{numbers}{mark})\.safetensors")
    if index in inside:
        return [index, *(name for name in inside if shard.fullmatch(name))]
    return [single] if single in inside else []


def _snapshot(base: HubBase) -> Path:
    """The folder of a Hub repository's snapshot, with all files that the checkpoint needs."""
    where = f"{base.repo}@{base.revision[:12]}"
    if not _COMMIT.fullmatch(base.revision):
        remedy = "pin the commit: 40 hexadecimal digits, from the repository's history"
        raise InputError(base.repo, f"has the revision {base.revision!r}, which can move", remedy)
    import httpx2
    from huggingface_hub import errors

    try:
        try:
            return _fetch(base, local=True)
        except (errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError):
            return _fetch(base, local=False)
    except InputError as error:
        raise InputError(f"{where}/{Path(error.where).name}", error.what, error.remedy) from error
    except errors.GatedRepoError as error:
        remedy = "accept its licence on the Hub, then log in with `hf auth login`"
        raise InputError(where, "is a gated repository", remedy) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            where, "has no such commit", "take a commit from the repository's history"
        ) from error
    except errors.RepositoryNotFoundError as error:
        remedy = "check the name; for a private repository log in with `hf auth login`"
        raise InputError(where, "is no repository that can be seen from here", remedy) from error
    except (errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError) as error:
        remedy = "go online once, or give a local folder as the base"
        raise InputError(where, "is not in the cache, and the Hub cannot be reached", remedy) from error
    except (errors.HFValidationError, httpx2.HTTPError, OSError) as error:
        raise InputError(where, f"cannot be fetched: {_first_line(error)}", "") from error


def _fetch(base: HubBase, *, local: bool) -> Path:
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    def fetch(patterns: list[str]) -> str:
        return snapshot_download(
            base.repo,
            revision=base.revision,
            allow_patterns=patterns,
            local_files_only=local,
            library_name="excise",
        )

    if local:
        # A snapshot without a listing may be a mere part, fetched by another program: this call then raises.
        get_cached_repo_tree(base.repo, revision=base.revision)
    components = read_components(Path(fetch(list(_SMALL_FILES))) / MODEL_INDEX)
    listing = [file.path for file in get_cached_repo_tree(base.repo, revision=base.revision)]
    weights = weight_files(listing, components, base.variant)
    return Path(fetch([*_SMALL_FILES, *weights]))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
