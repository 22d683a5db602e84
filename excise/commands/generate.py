"""`excise generate`: pictures from a checkpoint folder, or from an ONNX folder without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from compiler.generate import Draw, Images, Sampling


@click.command()
@click.argument("checkpoint", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="First seed.")
@click.option(
    "--count", default=1, show_default=True, type=click.IntRange(1, 10_000), help="Pictures to draw."
)
@click.option("--steps", default=25, show_default=True, type=click.IntRange(1, 1000), help="DDIM steps.")
@click.option(
    "--guidance", default=5.0, show_default=True, type=click.FloatRange(1, 100), help="Guidance scale."
)
@click.option(
    "-o",
    "--output",
    default="generated.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="PNG file to write.",
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def generate(
    checkpoint: Path,
    prompt: str,
    seed: int,
    count: int,
    steps: int,
    guidance: float,
    output: Path,
    force: bool,
    device: str,
    as_json: bool,
) -> None:
    """Draw PROMPT with the checkpoint in DIR ("miniature" is the embedded model).

    With --count N the seeds run on from --seed, and each file's name gets its seed before ".png". A picture
    depends on prompt and seed alone: they are drawn one by one. A folder that `excise export onnx` wrote is
    drawn with ONNX Runtime alone, on cuda or cpu; a seed gives the same picture there.
    """
    from PIL import Image

    from compiler.generate import Draw, Sampling
    from editspec import InputError

    files = named(output, seed, count)
    if not force and (there := next((file for file in files if file.exists()), None)):
        raise InputError(str(there), "exists", "choose another name with -o, or replace it with --force")
    if not output.parent.is_dir():
        raise InputError(str(output.parent), "is not a folder", "create it, or choose another name with -o")
    draws = [Draw(prompt, seed + k) for k in range(count)]
    images = _drawn(checkpoint, draws, Sampling(guidance, steps), device)
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file, format="PNG")
    if as_json:
        written = [{"file": str(file), "seed": draw.seed} for file, draw in zip(files, draws, strict=True)]
        click.echo(json.dumps({"prompt": prompt, "images": written}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(str(file) for file in files))


def _drawn(folder: Path, draws: Sequence[Draw], sampling: Sampling, device: str) -> Images:
    """The pictures: by ONNX Runtime from an exported folder, by the stock pipeline from a checkpoint."""
    from compiler.progress import for_terminal
    from exporters.onnx_sampler import OnnxSampler, is_onnx_folder

    if is_onnx_folder(folder):
        return OnnxSampler(folder, device).images(draws, sampling, progress=for_terminal())
    from compiler.base import open_base
    from compiler.device import choose
    from compiler.generate import Sampler, variant_of
    from editspec import PathBase
    from excise import embedded

    embedded.register()
    opened = open_base(PathBase(path=str(folder), variant=variant_of(folder)), Path.cwd())
    sampler = Sampler(opened, device=choose(device).open())
    return sampler.images(draws, sampling, batch=1, progress=for_terminal())


def named(output: Path, seed: int, count: int) -> list[Path]:
    """One file as named; of several each with its seed: cat.png -> cat-7.png, cat-8.png."""
    plain = output if output.suffix.lower() == ".png" else output.with_name(output.name + ".png")
    if count == 1:
        return [plain]
    return [plain.with_name(f"{plain.stem}-{seed + k}.png") for k in range(count)]
