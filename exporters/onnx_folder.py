"""A checkpoint -> a folder that ONNX Runtime pipelines load, delivered only when it computes what torch does.

One model at a time is in memory, except for the torch picture that the folder is compared with. Layout:
text_encoder[_2]/, unet/, vae_decoder/ and vae_encoder/, each with model.onnx, model.onnx_data and
config.json; tokenizer[_2]/, scheduler/, model_index.json; export.json and parity.json are ours.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.checkpoint import LICENSES, MODEL_INDEX, TOKENIZER_FILES, Checkpoint
from compiler.generate import Draw, Sampler, Sampling
from compiler.json_file import read_object
from compiler.link import copy_beside, scrubbed
from compiler.progress import Progress, Silent
from editspec.errors import GateFailed, InputError
from exporters.destination import RECORD, export_folder, record, write_record

if TYPE_CHECKING:
    from compiler.generate import Images
    from exporters.onnx_graphs import Graph, Precision
    from exporters.onnx_parity import ImageParity, ModelParity

PARITY = "parity.json"
PARITY_DRAW = Draw("a photo", 0)
PARITY_STEPS = 4
PACKAGES = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
_GRAPH_BYTES = 64 * 2**20  # for the graphs themselves, beside their weights


@dataclass(frozen=True)
class OnnxExport:
    """An exported folder, and how far it is from torch. `image` is None where none was asked for."""

    folder: Path
    precision: Precision
    models: tuple[ModelParity, ...]
    image: ImageParity | None
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON facts without the folder."""
        return {
            "precision": self.precision,
            "models": [model.as_dict() for model in self.models],
            "image": None if self.image is None else self.image.as_dict(),
        }


def export_onnx(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: Precision = "fp32",
    draw: Draw | None = PARITY_DRAW,
    steps: int = PARITY_STEPS,
    force: bool = False,
    progress: Progress | None = None,
) -> OnnxExport:
    """Write `checkpoint` as an ONNX folder to `out`, which appears whole or not at all.

    Every model is compared with torch on three sizes, and the picture `draw` of `steps` steps with the stock
    pipeline's (None leaves that out). In "fp16" the text encoders and the U-Net are halved; the VAE stays
    fp32, for it overflows. `GateFailed` where a difference is over its limit, `InputError` for a checkpoint
    that has no such export; nothing is written then.
    """
    require_packages()
    from exporters.onnx_graphs import graphs
    from exporters.onnx_parity import PSNR_LIMITS, ImageParity, psnr
    from exporters.onnx_sampler import OnnxSampler

    _require_maskless(checkpoint)
    progress = progress or Silent()
    sampling = Sampling(steps=steps)
    wanted = graphs(checkpoint)
    needed = _bytes(checkpoint, precision)
    with (
        export_folder(out, checkpoint=checkpoint, needed_bytes=needed, force=force) as built,
        progress.task("export onnx", total=len(wanted) + (2 if draw else 0)) as task,
    ):
        expected = None if draw is None else _torch_picture(checkpoint, draw, sampling)
        task.advance(1 if draw else 0)
        models = []
        for graph in wanted:
            models.append(export_model(graph, checkpoint, built.folder, precision))
            task.advance(1)
        left_out = _copy_others(checkpoint, built.folder)
        image = None
        if draw is not None and expected is not None:
            found = OnnxSampler(built.folder, "cpu").images([draw], sampling)
            levels = int(abs(found.astype(int) - expected.astype(int)).max())
            image = ImageParity(
                precision, draw.prompt, draw.seed, steps, sampling.guidance_scale, levels,
                psnr(found, expected), PSNR_LIMITS[precision],
            )  # fmt: skip
            task.advance(1)
        done = OnnxExport(out, precision, tuple(models), image, left_out)
        _require_parity(done)
        write_record(built.path(PARITY), done.as_dict())
        facts = {
            "precision": precision,
            "opset": _opset(),
            "left_out": list(left_out),
            "libraries": _versions(),
        }
        write_record(built.path(RECORD), record("onnx", checkpoint, facts))
    return done


def require_packages() -> None:
    """`InputError` unless what an export needs is installed."""
    from importlib.util import find_spec

    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        remedy = "pip install 'excise[onnx]', or 'excise[onnx-gpu]' for CUDA"
        raise InputError(missing[0], "is not installed; exporting to ONNX needs it", remedy)


def export_model(graph: Graph, checkpoint: Checkpoint, folder: Path, wanted: Precision) -> ModelParity:
    """Write one model, then compare it: torch first, so that never both hold their weights."""
    from exporters.onnx_graphs import write_graph
    from exporters.onnx_parity import compare, reference
    from exporters.onnx_sampler import Model

    precision = graph.precision(wanted)
    place = folder / graph.folder
    place.mkdir()
    place.chmod(0o755)
    copy_beside(checkpoint.root / graph.component / "config.json", place / "config.json")
    with _silent_torch():
        module = graph.load()
        answers = reference(graph, module, precision)
        write_graph(graph, module.half() if precision == "fp16" else module, place, precision)
    del module
    gc.collect()
    return compare(graph, Model(place, "cpu"), answers, precision)


def _torch_picture(checkpoint: Checkpoint, draw: Draw, sampling: Sampling) -> Images:
    """The picture that the checkpoint's stock pipeline draws on the CPU, in fp32."""
    picture = Sampler(checkpoint).images([draw], sampling, batch=1)
    gc.collect()  # a pipeline's parts point at each other
    return picture


def _copy_others(checkpoint: Checkpoint, folder: Path) -> tuple[str, ...]:
    """Everything that is no graph. Returns the components that have no place in an ONNX pipeline."""
    for name in checkpoint.components:
        if name.startswith("tokenizer"):
            _copy_tokenizer(checkpoint.root / name, _made(folder / name))
    scheduler = _made(folder / "scheduler")
    copy_beside(checkpoint.root / "scheduler" / "scheduler_config.json", scheduler / "scheduler_config.json")
    for name in LICENSES:
        if (checkpoint.root / name).is_file():
            copy_beside(checkpoint.root / name, folder / name)
    index = scrubbed(read_object(checkpoint.root / MODEL_INDEX))
    left_out = tuple(name for name in _LEFT_OUT if name in checkpoint.components)
    index |= {name: [None, None] for name in left_out}
    if left_out:
        index["requires_safety_checker"] = False
    write_record(folder / MODEL_INDEX, index)
    return left_out


def _copy_tokenizer(source: Path, target: Path) -> None:
    """The files as they are, and tokenizer.json where it is missing: sampling without torch reads that."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            copy_beside(source / name, target / name)
    if (target / "tokenizer.json").is_file() and (target / "tokenizer_config.json").is_file():
        return
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    if not (target / "tokenizer.json").is_file():
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
        (target / "tokenizer.json").chmod(0o644)
    if not (target / "tokenizer_config.json").is_file():
        facts = {"model_max_length": tokenizer.model_max_length, "pad_token": str(tokenizer.pad_token)}
        write_record(target / "tokenizer_config.json", {**facts, "tokenizer_class": "CLIPTokenizer"})


def _require_maskless(checkpoint: Checkpoint) -> None:
    if checkpoint.family != "sdxl" and checkpoint.config("text_encoder").get("use_attention_mask"):
        raise InputError(
            str(checkpoint.root / "text_encoder"),
            "hides padding from its text encoder (use_attention_mask), which ONNX pipelines cannot pass on",
            "export a base without it",
        )


def _require_parity(done: OnnxExport) -> None:
    failed = [
        f"{model.model} differs from torch by {model.max_abs:.2g}, allowed {model.limit * model.scale:.2g}"
        for model in done.models
        if not model.passed
    ]
    if done.image is not None and not done.image.passed:
        failed.append(
            f"a whole picture has {done.image.psnr:.1f} dB of PSNR, at least {done.image.limit} is asked"
        )
    if failed:
        raise GateFailed("\n  ".join([f"the {done.precision} export is not what torch computes", *failed]))


def _bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Disk that the export takes, roughly: the VAE in fp32, all else in the number format asked for."""
    size = 2 if precision == "fp16" else 4
    names = [name for name in checkpoint.weighted if name not in _LEFT_OUT]
    total = sum(checkpoint.weights(name).parameters * (4 if name == "vae" else size) for name in names)
    return total + _GRAPH_BYTES


def _made(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def _opset() -> int:
    from exporters.onnx_graphs import OPSET

    return OPSET


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "transformers", "onnx-ir", "onnxscript")}


@contextlib.contextmanager
def _silent_torch() -> Iterator[None]:
    """Inside, torch's exporter keeps its warnings about its own future and missing libraries to itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
