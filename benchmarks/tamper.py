"""Whether `excise verify` finds what was done to an artifact: single flipped bytes, and everything coarser.

Signs a copy of an artifact with a fresh key, then takes turns: change it, verify it with the public key, put
it back. Bytes are drawn over the whole artifact (so mostly weights) and again file by file (so that small
files and the signature count as much). An intact copy must pass before and after.

Usage: python benchmarks/tamper.py DIR [--flips N] [--seed N] [--json]
DIR is any artifact, such as `excise compile benchmarks/no_star.json -o DIR` gives.
It is not changed. Exit code 1 if anything went unseen.
Last line with --json: {"flips": N, "flips_found": N, "others": N, "others_found": N, ...}.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler import artifact as layout
from compiler.artifact import Artifact
from exporters.attestations import signed_statements
from exporters.manifest import write_manifest
from exporters.sign import Signer, private_key, sign_artifact
from exporters.verify import verify_artifact

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A fresh P-256 key: private and public PEM file."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def flips_unseen(folder: Path, public: Path, count: int, draw: random.Random) -> list[str]:
    """Flip one byte at a time, `count` times; the places that went unseen."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in paths]
    unseen = []
    for number in range(count):
        path = draw.choices(paths, sizes)[0] if number % 2 else draw.choice(paths)
        at, mask = draw.randrange(path.stat().st_size), draw.randrange(1, 256)
        with path.open("r+b") as file:
            file.seek(at)
            original = file.read(1)
            file.seek(at)
            file.write(bytes([original[0] ^ mask]))
        if verify_artifact(folder, public).ok:
            unseen.append(f"{path.relative_to(folder)} at {at}: {original[0]:#04x} ^ {mask:#04x}")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(original)
    return unseen


def record(name: str, change: Callable[[dict[str, Any]], object], *, anew: bool) -> Callable[[Path], object]:
    """Edit a JSON record, and with `anew` write the manifest over it again, as a forger would."""

    def tamper(folder: Path) -> None:
        artifact = Artifact(folder)
        document = artifact.read(name)
        change(document)
        artifact.write(name, document)
        if anew:
            write_manifest(artifact)

    return tamper


def swap(folder: Path) -> None:
    """Exchange the weights of U-Net and VAE."""
    one, other = (folder / name for name in (UNET, VAE))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def resigned(folder: Path) -> None:
    """Somebody else changes the card, makes the manifest anew and signs everything."""
    (folder / layout.CARD).write_text("safe", "utf-8")
    write_manifest(Artifact(folder))
    with tempfile.TemporaryDirectory() as place:
        sign_artifact(folder, Signer(key=key_pair(Path(place), "thief")[0]), force=True)


def attested_anew(folder: Path) -> None:
    """Somebody else's attestations of the same build take the place of the signer's."""
    with tempfile.TemporaryDirectory() as place:
        private, _ = key_pair(Path(place), "thief")
        theirs = signed_statements(Artifact(folder), private_key(private))
    (folder / layout.ATTESTATIONS).write_bytes(theirs)


def other_base(lock: dict[str, Any]) -> None:
    """Pin another base."""
    lock["base"]["files"]["model_index.json"] = lock["base"]["digest"] = "0" * 64


def other_edit(spec: dict[str, Any]) -> None:
    """Claim that another concept was edited."""
    spec["edits"][0]["concept"] = "something else"


OTHERS: dict[str, Callable[[Path], object]] = {
    "a file added": lambda at: (at / "unet/extra.json").write_text("{}"),
    "a hidden file added": lambda at: (at / ".hidden").write_text(""),
    "code added": lambda at: (at / "unet/model.py").write_text(""),
    "a link added": lambda at: (at / "link").symlink_to("README.md"),
    "a file removed": lambda at: (at / "vae/config.json").unlink(),
    "the manifest removed": lambda at: (at / layout.MANIFEST).unlink(),
    "the signature removed": lambda at: (at / layout.SIGNATURE).unlink(),
    "the attestations removed": lambda at: (at / layout.ATTESTATIONS).unlink(),
    "attestations by another key": attested_anew,
    "a file renamed": lambda at: (at / VAE).rename(at / "vae/other.safetensors"),
    "two files swapped": swap,
    "a file cut short": lambda at: (at / UNET).write_bytes((at / UNET).read_bytes()[:-1]),
    "a file made longer": lambda at: (at / UNET).write_bytes((at / UNET).read_bytes() + b"\0"),
    "a swapped base": record(layout.LOCK, other_base, anew=False),
    "a swapped base, manifest anew": record(layout.LOCK, other_base, anew=True),
    "an edited spec": record(layout.SPEC, other_edit, anew=False),
    "an edited spec, manifest anew": record(layout.SPEC, other_edit, anew=True),
    "signed anew by another key": resigned,
}


def others_unseen(folder: Path, public: Path) -> list[str]:
    """Each of OTHERS on a copy of its own; those that went unseen."""
    unseen = []
    for name, tamper in OTHERS.items():
        with tempfile.TemporaryDirectory(prefix="excise-tamper-") as place:
            copy = Path(shutil.copytree(folder, Path(place) / "copy", symlinks=True))
            tamper(copy)
            if verify_artifact(copy, public).ok:
                unseen.append(name)
    return unseen


def main() -> None:
    """Tamper, verify and print; exit code 1 if anything went unseen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", metavar="DIR", type=Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on the last line")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="excise-tamper-") as place:
        folder = Path(shutil.copytree(arguments.artifact, Path(place) / "artifact"))
        private, public = key_pair(Path(place), "release")
        sign_artifact(folder, Signer(key=private), force=True)
        if not verify_artifact(folder, public).ok:
            sys.exit("the untouched artifact does not verify")
        flips = flips_unseen(folder, public, arguments.flips, random.Random(arguments.seed))
        others = others_unseen(folder, public)
        if not verify_artifact(folder, public).ok:
            sys.exit("the artifact was not put back as it was")
    for place_unseen in (*flips, *others):
        print(f"unseen: {place_unseen}", file=sys.stderr)
    print(f"single bytes found: {arguments.flips - len(flips)} of {arguments.flips}")
    print(f"coarser changes found: {len(OTHERS) - len(others)} of {len(OTHERS)}")
    if arguments.json:
        figures = {"flips": arguments.flips, "flips_found": arguments.flips - len(flips)}
        figures |= {"others": len(OTHERS), "others_found": len(OTHERS) - len(others)}
        print(json.dumps({**figures, "seconds": round(time.perf_counter() - started, 1)}))
    sys.exit(1 if flips or others else 0)


if __name__ == "__main__":
    main()
