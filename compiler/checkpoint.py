"""A diffusers checkpoint seen lazily: configurations, names, shapes and digests; no tensor is loaded.

Only what a Stable Diffusion pipeline needs is part of a checkpoint: the files of its components, by name.
Whatever else lies in the folder (other variants, pickles beside safetensors, notes) is neither opened nor
copied, so it cannot reach an artifact.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, get_args

from compiler.digests import file_digests
from compiler.json_file import read_object
from compiler.weights import CONVERT, PICKLES, Weights
from editspec.errors import InputError

Family = Literal["sd1", "sd2", "sdxl"]
FAMILIES: tuple[Family, ...] = get_args(Family)

MODEL_INDEX = "model_index.json"
UNET = "unet"
EDITABLE = ("F16", "BF16", "F32", "F64")  # number formats of a U-Net that an edit can be folded into

_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_DIFFUSERS_STEM = "diffusion_pytorch_model"
_TRANSFORMERS_STEM = "model"
#: Component -> the stem of its weight files, for components that have weights.
STEMS = {
    "unet": _DIFFUSERS_STEM,
    "vae": _DIFFUSERS_STEM,
    "text_encoder": _TRANSFORMERS_STEM,
    "text_encoder_2": _TRANSFORMERS_STEM,
    "safety_checker": _TRANSFORMERS_STEM,
    "image_encoder": _TRANSFORMERS_STEM,
}
#: Component -> classes it may have. A class outside this list could be anybody's code.
_CLASSES = {
    "unet": r"UNet2DConditionModel",
    "vae": r"AutoencoderKL",
    "text_encoder": r"CLIPTextModel",
    "text_encoder_2": r"CLIPTextModelWithProjection",
    "tokenizer": r"CLIPTokenizer(Fast)?",
    "tokenizer_2": r"CLIPTokenizer(Fast)?",
    "scheduler": r"[A-Za-z0-9]+Scheduler",
    "safety_checker": r"StableDiffusionSafetyChecker",
    "feature_extractor": r"CLIP(ImageProcessor(Fast|Pil)?|FeatureExtractor)",
    "image_encoder": r"CLIPVisionModelWithProjection",
}
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
_REQUIRED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_CONFIGS = {
    "scheduler": "scheduler_config.json",
    "feature_extractor": "preprocessor_config.json",
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
}
TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json",
)  # fmt: skip
LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
_VARIANT = re.compile(r"[A-Za-z0-9_\-]+")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A folder that stock diffusers loads as a text-to-image Stable Diffusion pipeline.

    `components` are those that are there, in alphabetical order; make one with `Checkpoint.open`.
    """

    root: Path
    variant: str | None
    family: Family
    components: tuple[str, ...]
    _weights: Mapping[str, Weights]
    _configs: Mapping[str, dict[str, Any]]

    @classmethod
    def open(cls, path: Path | str, variant: str | None = None) -> Self:
        """Look at every configuration and every weight file's header. Raises `InputError`, writes nothing."""
        root = Path(path)
        _require_folder(root)
        if variant is not None and not _VARIANT.fullmatch(variant):
            _refuse(root, f"cannot have a variant {variant!r}", "variants are words such as fp16")
        components = read_components(root / MODEL_INDEX)
        _refuse_code(root, components)
        configs = {name: _config(root / name, name) for name in components}
        family = _family(root, components, configs)
        weights = {
            name: Weights.open(root / name, STEMS[name], variant) for name in components if name in STEMS
        }
        for name in (name for name in components if name.startswith("tokenizer")):
            _require_tokenizer(root / name)
        checkpoint = cls(root, variant, family, components, weights, configs)
        checkpoint._require_contained()
        _require_listening(root, configs[UNET], weights[UNET])
        return checkpoint

    def config(self, component: str) -> dict[str, Any]:
        """A component's configuration; {} for a tokenizer without one. Raises `KeyError` if it is absent."""
        return self._configs[component]

    def weights(self, component: str) -> Weights:
        """A component's weights. Raises `KeyError` if it is absent or has none."""
        return self._weights[component]

    @property
    def weighted(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(self._weights)

    @cached_property
    def _files(self) -> tuple[str, ...]:
        found = [MODEL_INDEX, *(name for name in LICENSES if (self.root / name).is_file())]
        for name in self.components:
            wanted = TOKENIZER_FILES if name.startswith("tokenizer") else (_config_name(name),)
            found += [f"{name}/{file}" for file in wanted if (self.root / name / file).is_file()]
            if name in self._weights:
                weights = self._weights[name]
                files = (*weights.files, weights.index) if weights.index else weights.files
                found += [f"{name}/{path.name}" for path in files]
        return tuple(sorted(found))

    def files(self) -> tuple[str, ...]:
        """All files that make up the checkpoint, relative, with forward slashes, sorted."""
        return self._files

    @cached_property
    def _digests(self) -> dict[str, str]:
        found = file_digests(self.root / name for name in self._files)
        return {name: found[self.root / name] for name in self._files}

    def digests(self) -> dict[str, str]:
        """Relative path -> sha256 of each file, read once; a local base is pinned by these."""
        return dict(self._digests)

    @property
    def digest(self) -> str:
        """One sha256 over all files' names and digests."""
        return listing_digest(self._digests)

    def _require_contained(self) -> None:
        """No file is a link out of the checkpoint: it would carry any file of this machine into the output.

        The Hub's cache keeps a snapshot as links into the repository's own store of blobs; those are its own.
        """
        inside = self.root.resolve()
        if inside.parent.name == "snapshots" and (inside.parent.parent / "blobs").is_dir():
            inside = inside.parent.parent
        for name in self._files:
            target = (self.root / name).resolve()
            if not target.is_relative_to(inside):
                _refuse(self.root / name, "is a link that leaves the checkpoint", "put the file itself there")


def listing_digest(digests: Mapping[str, str]) -> str:
    """One sha256 over files' names and sha256: that of `sha256sum`'s output, sorted by name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _require_folder(root: Path) -> None:
    if root.is_dir():
        if (root / MODEL_INDEX).is_file():
            return
        pickles = sorted(path.name for path in root.iterdir() if path.name.endswith(PICKLES))
        if pickles:
            _refuse(root, f"holds a pickle ({pickles[0]}), which can run code when it is opened", CONVERT)
        _refuse(root, f"has no {MODEL_INDEX}", "the base is a folder as diffusers' save_pretrained writes it")
    if not root.exists():
        _refuse(root, "does not exist", "give the folder of a diffusers checkpoint, relative to the spec")
    if root.name.endswith(PICKLES):
        _refuse(root, "is a pickle, which can run code when it is opened", CONVERT)
    _refuse(root, "is a file", "give a folder as diffusers' save_pretrained writes it")


def read_components(path: Path) -> tuple[str, ...]:
    """The components that a model_index.json lists, sorted. `InputError` where not all are stock ones."""
    index = read_object(path)
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES:
        _refuse(path, f"is for {pipeline!r}", f"a base is for {' or '.join(_PIPELINES)}")
    found = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if len(value) != 2 or not all(isinstance(part, str) for part in value):
            _refuse(path, f"describes {name} by {str(value)[:80]}, not by a library and a class", "")
        library, kind = value
        if name not in _CLASSES:
            _refuse(path, f"has a component {name!r}", f"known are {', '.join(sorted(_CLASSES))}")
        if library not in _LIBRARIES or not re.fullmatch(_CLASSES[name], kind):
            remedy = "only the classes of stock Stable Diffusion pipelines are opened"
            _refuse(path, f"makes {name} a {library}.{kind}", remedy)
        found.append(name)
    twos = ("text_encoder_2", "tokenizer_2") if pipeline == "StableDiffusionXLPipeline" else ()
    if missing := [name for name in (*_REQUIRED, *twos) if name not in found]:
        _refuse(path, f"lacks {', '.join(missing)}", "a base has all parts of a text-to-image pipeline")
    return tuple(sorted(found))


def _refuse_code(root: Path, components: tuple[str, ...]) -> None:
    for folder in (root, *(root / name for name in components)):
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.name.endswith((".py", ".pyc", ".so")):
                    _refuse(path, "is code inside a checkpoint", "remove it, or take a base without code")


def _config_name(component: str) -> str:
    return _CONFIGS.get(component, "config.json")


def _config(folder: Path, component: str) -> dict[str, Any]:
    path = folder / _config_name(component)
    if component.startswith("tokenizer") and not path.exists():
        return {}
    config = read_object(path)
    if "auto_map" in config:
        _refuse(path, "asks for code of its own (auto_map)", "take a base without it")
    expected = _CLASSES[component]
    if component in ("unet", "vae") and not re.fullmatch(expected, str(config.get("_class_name"))):
        _refuse(path, f"is for {config.get('_class_name')!r}", f"expected {expected}")
    return config


def _require_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                _refuse(folder, f"has no {name}", "a tokenizer is a tokenizer.json, or both")


def _family(root: Path, components: tuple[str, ...], configs: Mapping[str, dict[str, Any]]) -> Family:
    """SDXL has two text encoders; SD2 projects linearly around its attention blocks, SD1 by convolutions."""
    unet = configs[UNET]
    channels = [_number(root, configs["vae"], "vae", "latent_channels")]
    channels += [_number(root, unet, UNET, side) for side in ("in_channels", "out_channels")]
    if len(set(channels)) > 1:
        what = f"has a VAE of {channels[0]} channels and a U-Net from {channels[1]} to {channels[2]}"
        _refuse(root, what, "take a text-to-image base, not one for inpainting or image variation")
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in components]
    widths = [_number(root, configs[name], name, "hidden_size") for name in encoders]
    listens = unet.get("cross_attention_dim")
    if any(one != sum(widths) for one in (listens if isinstance(listens, list) else [listens])):
        what = f"has a U-Net that reads text of width {listens}, but text encoders of width {widths}"
        _refuse(root, what, "the parts belong to different models")
    if len(encoders) == 2:
        return "sdxl"
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def _number(root: Path, config: Mapping[str, Any], component: str, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        _refuse(root / component / _config_name(component), f"has {key} = {value!r}", "expected a number")
    return value


def _require_listening(root: Path, config: Mapping[str, Any], unet: Weights) -> None:
    """The U-Net's weights can be edited, and agree with its configuration where text comes in."""
    listens = config["cross_attention_dim"]
    widths = set(listens) if isinstance(listens, list) else {listens}
    for entry in unet.entries.values():
        if entry.dtype not in EDITABLE:
            what = f"keeps {entry.name} as {entry.dtype}, which holds no edit"
            _refuse(entry.file, what, f"take a base in one of {', '.join(EDITABLE)}")
    keys = [entry for name, entry in unet.entries.items() if name.endswith("attn2.to_k.weight")]
    if not keys:
        _refuse(root / UNET, "has no cross-attention (no attn2.to_k.weight)", "is this really a U-Net?")
    for entry in keys:
        if len(entry.shape) != 2 or entry.shape[1] not in widths:
            _refuse(entry.file, f"gives {entry.name} the shape {entry.shape}, against its config.json", "")


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise InputError(str(path), what, remedy)
