"""Trains the whole miniature: `python -m excise.miniature.train --work DIR [STAGE ...]`.

Stages run in this order, each going on where a killed run stopped; finished work in DIR is not repeated.
`decoder-more`, `base-more`, `base-told` and `twin-more` go on from the shipped weights in a DIR that has no
earlier stage, and oracles look through the shipped autoencoder there.
On two CPU cores the diffusion stages take about an hour and a half together; a GPU is used when named.
"""

from __future__ import annotations

from pathlib import Path

import click

from excise.miniature.vocabulary import vocabulary

WORLD_SIZE = 60_000
STAGES = (
    "autoencoder",
    "decoder-more",
    "trunk",
    "base",
    "base-more",
    "base-told",
    "oracle-a",
    "oracle-b",
    "clip",
    "twin",
    "twin-more",
    "pack",
)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks: page faults took half of a CPU step otherwise."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in (
            (-1, 2**31 - 1),
            (-2, 2**28),
            (-3, 2**31 - 1),
        ):  # trim threshold, top pad, mmap threshold
            libc.mallopt(option, value)


@click.command(help=__doc__)
@click.argument("stages", nargs=-1, type=click.Choice(STAGES))
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for drawings and half-finished training.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves the default.")
def main(stages: tuple[str, ...], work: Path, device: str, threads: int) -> None:
    """Run the stages."""
    import torch

    from excise.miniature.architecture import build_tokenizer
    from excise.miniature.training.autoencoder import (
        encode_world,
        furthest,
        load_autoencoder,
        train_autoencoder,
        train_decoder,
    )
    from excise.miniature.training.clip import train_clip
    from excise.miniature.training.dataset import WORLD_SEED, render
    from excise.miniature.training.diffusion import BRANCHES, caption_world, train_branch
    from excise.miniature.training.oracles import RECIPES, train_oracle

    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    chosen = stages or STAGES
    tokenizer = build_tokenizer(work / "tokenizer", vocabulary())
    pixels = render(work, WORLD_SIZE)
    if "autoencoder" in chosen and not (work / "vae" / "config.json").exists():
        train_autoencoder(pixels, work / "vae", device=device)
    if "decoder-more" in chosen and not (work / "vae-more" / "config.json").exists():
        train_decoder(pixels, WORLD_SEED, furthest(work), work / "vae-more", device=device)
    # Captions and mini-CLIP need no autoencoder: they can be trained in a folder that holds nothing else.
    vae = load_autoencoder(furthest(work)) if {*BRANCHES, *RECIPES} & set(chosen) else None
    if {*BRANCHES, "clip"} & set(chosen):
        captions = caption_world(tokenizer, WORLD_SEED, WORLD_SIZE, work / "captions.npz")
    if set(BRANCHES) & set(chosen):
        assert vae is not None
        latents = encode_world(vae.to(device), pixels, work / "latents.npy", device)
    for stage in chosen:
        if stage in BRANCHES:
            text_encoder, unet = train_branch(
                BRANCHES[stage], latents, captions, tokenizer, work, device=device
            )
            text_encoder.half().save_pretrained(work / stage / "text_encoder")
            unet.half().save_pretrained(work / stage / "unet")
        elif stage in RECIPES:
            assert vae is not None
            train_oracle(RECIPES[stage], vae, work)
        elif stage == "clip":
            train_clip(tokenizer, pixels, captions, WORLD_SEED, work)
        elif stage == "pack":
            from excise.miniature.training.pack import pack

            pack(work)


if __name__ == "__main__":
    main()
