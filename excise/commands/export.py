"""`excise export`: a checkpoint as ONNX, LoRA, single file, delta file, or in fp16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

_SOURCE = click.argument("checkpoint", metavar="DIR", type=click.Path(path_type=Path))
_OUT = click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
_FORCE = click.option("--force", is_flag=True, help="Replace an earlier export.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the export's record as JSON.")
_BASE = click.option(
    "--base", type=click.Path(path_type=Path), help="The folder of the base that DIR was made from."
)


@click.group()
def export() -> None:
    """Write the checkpoint in DIR in another form to OUT, which appears whole or not at all.

    A record says what was exported from what and how exact it is: export.json in a folder, OUT.json beside a
    file. DIR may be "miniature", the embedded model.
    """


@export.command()
@_SOURCE
@_OUT
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Number format of U-Net and text encoders; the VAE stays in fp32.",
)
@click.option("--picture/--no-picture", default=True, help="Compare a whole picture with torch's, too.")
@click.option(
    "--steps", default=4, show_default=True, type=click.IntRange(1, 1000), help="Steps of that picture."
)
@_FORCE
@_JSON
def onnx(
    checkpoint: Path, out: Path, precision: Any, picture: bool, steps: int, force: bool, as_json: bool
) -> None:
    """Write a folder for ONNX Runtime: `excise generate OUT PROMPT`, or optimum's ORT pipelines.

    Batch and size stay dynamic. Each model is compared with torch at three sizes and one whole picture is
    drawn with both; the result is in OUT/parity.json. Exits with 3, and writes nothing, where one differs.
    """
    from compiler.progress import for_terminal
    from exporters.onnx_folder import PARITY_DRAW, export_onnx

    done = export_onnx(
        _opened(checkpoint),
        out,
        precision=precision,
        draw=PARITY_DRAW if picture else None,
        steps=steps,
        force=force,
        progress=for_terminal(),
    )
    lines = [f"{model.model}: differs from torch by {model.max_abs:.2g}" for model in done.models]
    if done.image is not None:
        lines.append(f"a whole picture: {done.image.psnr:.1f} dB of PSNR")
    lines += [f"left out: {name}" for name in done.left_out]
    facts = {"format": "onnx", **done.as_dict(), "left_out": list(done.left_out)}
    _tell(out, facts, lines, as_json)


@export.command()
@_SOURCE
@_OUT
@_BASE
@click.option(
    "--rank", default=64, show_default=True, type=click.IntRange(1, 1280), help="Largest rank to write."
)
@click.option(
    "--biases/--no-biases", default=True, help="Include the changes of biases; few programs read them."
)
@_FORCE
@_JSON
def lora(
    checkpoint: Path,
    out: Path,
    base: Path | None,
    rank: int,
    biases: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the edit in DIR as a LoRA file for its base: diffusers' load_lora_weights reads it.

    Exact where the change has at most the given rank, the best of that rank elsewhere; OUT.json states the
    error of each module. Whoever holds a LoRA can leave it out: to publish an edit, publish the checkpoint.
    """
    from compiler.progress import for_terminal
    from exporters.lora import export_lora

    facts = export_lora(
        _opened(checkpoint),
        out,
        base=None if base is None else _opened(base),
        rank=rank,
        biases=biases,
        force=force,
        progress=for_terminal(),
    )
    exact = sum(module["exact"] for module in facts["modules"].values())
    lines = [
        f"rank {facts['rank']}, relative error {facts['relative_error']:.2g}",
        f"{exact} of {len(facts['modules'])} modules exact, {len(facts['biases'])} biases",
    ]
    if facts["left_out"]:
        lines.append(
            f"{len(facts['left_out'])} changes have no place in a LoRA, such as {min(facts['left_out'])}"
        )
    _tell(out, facts, lines, as_json)


@export.command()
@_SOURCE
@_OUT
@_FORCE
@_JSON
def single_file(checkpoint: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write DIR as one safetensors file in the original naming, for A1111, ComfyUI and from_single_file.

    It is read back through diffusers' own conversion: every tensor comes out bit by bit, or it exits with 3.
    """
    from exporters.single_file import export_single_file

    facts = export_single_file(_opened(checkpoint), out, force=force)
    lines = [f"{facts['tensors']} tensors; {facts['round_trip']['tensors']} read back bit by bit"]
    if facts["prediction_type"] != "epsilon":
        lines.append(f"predicts {facts['prediction_type']}: tell the program that loads it, the file cannot")
    lines += [f"left out: {name}" for name in facts["left_out"]]
    _tell(out, facts, lines, as_json)


@export.command()
@_SOURCE
@_OUT
@_BASE
@_FORCE
@_JSON
def delta(checkpoint: Path, out: Path, base: Path | None, force: bool, as_json: bool) -> None:
    """Write the edit in DIR alone: fp32 changes by U-Net tensor name, as a safetensors file.

    Taken from DIR's provenance, else as the difference to --base. With --base, base + change is compared with
    DIR bit by bit; exits with 3 where an artifact is not what its recorded changes give.
    """
    from exporters.delta_file import export_delta

    opened = None if base is None else _opened(base)
    facts = export_delta(_opened(checkpoint), out, base=opened, force=force)
    lines = [f"{facts['tensors']} tensors, {facts['parameters']:,} numbers, from the {facts['origin']}"]
    if facts["reproduces"] is not None:
        wrong = facts["reproduces"]["wrong_elements"]
        lines.append(
            f"base + change gives DIR bit by bit, except {wrong:,} elements"
            if wrong
            else "base + change gives DIR bit by bit"
        )
    _tell(out, facts, lines, as_json)


@export.command()
@_SOURCE
@_OUT
@_FORCE
@_JSON
def fp16(checkpoint: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write DIR as a diffusers folder with all weights in fp16."""
    from compiler.progress import for_terminal
    from exporters.half import export_fp16

    facts = export_fp16(_opened(checkpoint), out, force=force, progress=for_terminal())
    worst = max(facts["largest_rounding"].values(), default=0.0)
    _tell(out, facts, [f"largest rounding error {worst:.2g}"], as_json)


def _opened(folder: Path) -> Checkpoint:
    """The checkpoint at `folder`, or the embedded model."""
    from compiler.base import open_base
    from compiler.generate import variant_of
    from editspec import PathBase
    from excise import embedded

    embedded.register()
    return open_base(PathBase(path=str(folder), variant=variant_of(folder)), Path.cwd())


def _tell(out: Path, facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"ok": True, "out": str(out), **facts}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n  ".join([str(out), *lines]))
