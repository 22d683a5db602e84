from __future__ import annotations

from pathlib import Path

import pytest

from compiler.artifact import MANIFEST, SPEC, Artifact
from editspec.errors import InputError
from registry.manifest import Difference, check_manifest, write_manifest


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    artifact = Artifact(tmp_path / "built")
    (artifact.folder / "unet").mkdir(parents=True)
    artifact.path("model_index.json").write_text("{}", "utf-8")
    artifact.path("unet/weights.safetensors").write_bytes(b"\x01" * 100)
    artifact.write(SPEC, {"name": "x"})
    write_manifest(artifact)
    return artifact


def test_an_untouched_artifact_is_intact(artifact: Artifact) -> None:
    assert check_manifest(artifact.folder) == ()
    assert list(artifact.read(MANIFEST)["files"]) == ["model_index.json", SPEC, "unet/weights.safetensors"]


def test_every_file_missing_unexpected_or_changed_is_named(artifact: Artifact) -> None:
    artifact.path("model_index.json").write_text("[]", "utf-8")
    artifact.path("unet/weights.safetensors").rename(artifact.path("unet/other.safetensors"))
    assert check_manifest(artifact.folder) == (
        Difference("model_index.json", "changed"),
        Difference("unet/other.safetensors", "unexpected"),
        Difference("unet/weights.safetensors", "missing"),
    )


def test_one_flipped_bit_is_found(artifact: Artifact) -> None:
    artifact.path("unet/weights.safetensors").write_bytes(b"\x01" * 99 + b"\x03")
    assert check_manifest(artifact.folder) == (Difference("unet/weights.safetensors", "changed"),)


def test_a_link_to_a_folder_is_not_overlooked(artifact: Artifact, tmp_path: Path) -> None:
    artifact.path("vae").symlink_to(tmp_path)
    assert check_manifest(artifact.folder) == (Difference("vae", "unexpected"),)


def test_what_downloading_adds_is_no_difference(artifact: Artifact) -> None:
    artifact.path(".gitattributes").write_text("*", "utf-8")
    artifact.path(".cache/huggingface").mkdir(parents=True)
    artifact.path(".cache/huggingface/x").write_text("", "utf-8")
    assert check_manifest(artifact.folder) == ()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"manifest": 2, "files": {}}', '{"manifest": 1, "files": {"a": 1}}']
)
def test_a_manifest_that_cannot_be_understood_is_refused(artifact: Artifact, text: str) -> None:
    artifact.path(MANIFEST).write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        check_manifest(artifact.folder)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an artifact"):
        check_manifest(tmp_path)
