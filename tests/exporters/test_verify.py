from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler import artifact as layout
from compiler.artifact import Artifact
from compiler.checkpoint import Checkpoint, listing_digest
from compiler.safetensors_file import read_header
from editspec.canonical import digest
from editspec.errors import InputError
from exporters.manifest import encoded, write_manifest
from exporters.verify import VerifyReport, verify_artifact

Change = Callable[[Path], object]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def found(report: VerifyReport) -> set[tuple[str, str]]:
    return {(finding.check, finding.path) for finding in report.findings}


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a record the way a forger would: in the form in which Excise writes it."""
    artifact = Artifact(folder)
    document = artifact.read(name)
    change(document)
    artifact.write(name, document)


def forge(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """The same, and the manifest made anew over it."""
    rewrite(folder, name, change)
    write_manifest(Artifact(folder))


def test_an_untouched_artifact_passes_every_check_that_needs_no_key(built: Path) -> None:
    report = verify_artifact(built)
    assert report.ok
    assert report.signature == "absent"
    facts = report.as_dict()
    assert facts["checks"] == {
        "files": "passed",
        "manifest": "passed",
        "record": "passed",
        "weights": "passed",
        "gates": "passed",
        "base": "skipped",
        "signature": "skipped",
    }
    assert facts["digest"] == Artifact(built).sha256(layout.MANIFEST)
    assert report.files[UNET] == Artifact(built).sha256(UNET)
    assert report.bytes == sum(path.stat().st_size for path in built.rglob("*") if path.is_file())


def test_verifying_changes_nothing(built: Path, tiny_artifact: Path) -> None:
    verify_artifact(built)
    assert names(built) == names(tiny_artifact)
    assert not (Path(os.environ["EXCISE_CACHE"]) / "digests").exists(), "no digest is remembered or recalled"


def test_a_flipped_byte_is_found_wherever_it_lies(built: Path) -> None:
    """Without a signature too: each byte is in a listed file, or in the manifest, which can be computed."""
    draw = random.Random(20)
    paths = sorted(path for path in built.rglob("*") if path.is_file())
    for path in (*paths, *draw.choices(paths, [one.stat().st_size for one in paths], k=20)):
        original = path.read_bytes()
        at, mask = draw.randrange(len(original)), draw.randrange(1, 256)
        path.write_bytes(original[:at] + bytes([original[at] ^ mask]) + original[at + 1 :])
        report = verify_artifact(built)
        assert not report.ok, f"byte {at} of {path.name} flipped by {mask:#x} went unseen"
        path.write_bytes(original)
    assert verify_artifact(built).ok


TAMPERED: dict[str, tuple[Change, set[tuple[str, str]]]] = {
    "a file removed": (lambda at: (at / "vae/config.json").unlink(), {("files", "vae/config.json")}),
    "a file added": (lambda at: (at / "unet/notes.json").write_text("{}"), {("files", "unet/notes.json")}),
    "a hidden file added": (lambda at: (at / ".env").write_text(""), {("files", ".env")}),
    "a file renamed": (
        lambda at: (at / VAE).rename(at / "vae/other.safetensors"),
        {("files", VAE), ("files", "vae/other.safetensors")},
    ),
    "two files swapped": (
        lambda at: swap(at / UNET, at / VAE),
        {("files", UNET), ("files", VAE)},
    ),
    "code added": (lambda at: (at / "unet/model.py").write_text(""), {("files", "unet/model.py")}),
    "a pickle added": (lambda at: (at / "unet/x.bin").write_bytes(b""), {("files", "unet/x.bin")}),
    "a link added": (lambda at: (at / "link").symlink_to("README.md"), {("files", "link")}),
    "a link for a file": (lambda at: as_link(at / UNET), {("files", UNET)}),
    "a folder linked": (lambda at: (at / "more").symlink_to(at.parent), {("files", "more")}),
    "a pipe for a file": (lambda at: as_pipe(at / layout.LOCK), {("files", layout.LOCK)}),
    "the spec removed": (lambda at: (at / layout.SPEC).unlink(), {("files", layout.SPEC)}),
    "the manifest removed": (lambda at: (at / layout.MANIFEST).unlink(), {("manifest", layout.MANIFEST)}),
    "the manifest a pipe": (lambda at: as_pipe(at / layout.MANIFEST), {("files", layout.MANIFEST)}),
    "attestations added": (
        lambda at: (at / layout.ATTESTATIONS).write_text(""),
        {("files", layout.ATTESTATIONS)},
    ),
    "the card edited": (lambda at: (at / "README.md").write_text("safe"), {("files", "README.md")}),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_added_removed_renamed_swapped_or_linked_is_named(what: str, built: Path) -> None:
    change, expected = TAMPERED[what]
    change(built)
    assert expected <= found(verify_artifact(built))


def swap(one: Path, other: Path) -> None:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def as_link(path: Path) -> None:
    path.rename(path.parent.parent.parent / path.name)
    path.symlink_to(path.parent.parent.parent / path.name)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swapped_base(lock: dict[str, Any]) -> None:
    lock["base"]["files"]["vae/config.json"] = "0" * 64


FORGED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "the spec": (layout.SPEC, lambda spec: spec["edits"][0].update(concept="moon"), layout.SPEC),
    "the spec's base": (layout.SPEC, lambda spec: spec["base"].update(path="other"), layout.SPEC),
    "a file of the base": (layout.LOCK, swapped_base, layout.LOCK),
    "the base": (layout.LOCK, lambda lock: lock["base"].update(digest="0" * 64), layout.LOCK),
    "the libraries": (layout.LOCK, lambda lock: lock["libraries"].update(torch="1.0"), layout.PLAN),
    "the machine": (layout.LOCK, lambda lock: lock["device"].update({"class": "cuda"}), layout.PLAN),
    "the seed": (layout.LOCK, lambda lock: lock.update(seed="1"), layout.LOCK),
    "the planned gates": (layout.PLAN, lambda plan: plan.update(gates=[]), layout.GATES),
    "the edits": (layout.EDITS, lambda edits: edits.update(passes=[]), layout.EDITS),
    "the count of edits": (layout.EDITS, lambda edits: edits["tensors"].update(changed=1), layout.EDITS),
    "the gates": (layout.GATES, lambda gates: gates.update(gates=[]), layout.GATES),
    "what was measured": (layout.GATES, lambda gates: gates.update(edited="0" * 64), layout.GATES),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_record_that_tells_another_story_is_found_even_with_a_manifest_made_anew(
    what: str, built: Path
) -> None:
    name, change, named = FORGED[what]
    forge(built, name, change)
    assert ("record", named) in found(verify_artifact(built))


def test_weights_of_another_model_are_not_what_the_gates_measured(built: Path) -> None:
    data = bytearray((built / UNET).read_bytes())
    data[-1] ^= 1
    (built / UNET).write_bytes(data)
    write_manifest(Artifact(built))
    assert found(verify_artifact(built)) == {("record", layout.GATES)}


def test_a_spec_edited_together_with_its_digest_no_longer_fits_the_plan(built: Path) -> None:
    rewrite(built, layout.SPEC, lambda spec: spec["edits"][0].update(concept="moon"))
    pinned = digest(Artifact(built).read(layout.SPEC))
    forge(built, layout.LOCK, lambda lock: lock.update(spec=pinned))
    assert ("record", layout.PLAN) in found(verify_artifact(built))


def test_a_manifest_that_says_more_than_the_record_is_refused(built: Path) -> None:
    document = Artifact(built).read(layout.MANIFEST)
    document["predicate"]["runDetails"]["builder"]["id"] = "https://trusted.example/builder"
    (built / layout.MANIFEST).write_bytes(encoded(document))
    assert found(verify_artifact(built)) == {("manifest", layout.MANIFEST)}


def test_a_file_that_no_artifact_has_is_refused_though_the_manifest_lists_it(built: Path) -> None:
    (built / "unet/notes.json").write_text("{}", "utf-8")
    write_manifest(Artifact(built))
    assert found(verify_artifact(built)) == {("files", "unet/notes.json")}


def test_weight_files_are_read_strictly(built: Path) -> None:
    data = (built / VAE).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = {"format": "pt", "note": "hidden"}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    (built / VAE).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    write_manifest(Artifact(built))
    assert ("weights", VAE) in found(verify_artifact(built))
    (built / VAE).write_bytes(data + b"\0")
    write_manifest(Artifact(built))
    assert ("weights", VAE) in found(verify_artifact(built))


def test_changes_that_do_not_fit_the_unet_are_found(built: Path) -> None:
    path = built / layout.DELTAS
    name = next(iter(read_header(path)[0])).encode("ascii")
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"X"))
    write_manifest(Artifact(built))
    assert ("record", layout.DELTAS) in found(verify_artifact(built))


def test_a_rejected_build_is_refused_by_the_name_of_its_gate(built: Path) -> None:
    def failed(gates: dict[str, Any]) -> None:
        gates["passed"] = gates["gates"][0]["passed"] = False

    forge(built, layout.GATES, failed)
    (finding,) = verify_artifact(built).findings
    assert (finding.check, finding.path) == ("gates", layout.GATES)
    assert "'drift' failed" in finding.what


@pytest.mark.parametrize("name", [layout.SPEC, layout.LOCK, layout.PLAN, layout.EDITS, layout.GATES])
@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"base": 1, "gates": [1], "passes": {"x": 2}}', "{", '{"a":1,"a":2}']
)
def test_records_of_another_kind_are_findings_and_no_crash(name: str, text: str, built: Path) -> None:
    manifest = Artifact(built).read(layout.MANIFEST)
    (built / name).write_text(text, "utf-8")
    for subject in manifest["subject"]:
        if subject["name"] == name:
            subject["digest"]["sha256"] = Artifact(built).sha256(name)
    (built / layout.MANIFEST).write_bytes(encoded(manifest))
    assert not verify_artifact(built).ok


def test_an_edited_card_passes_where_that_is_asked_for_and_only_the_card(built: Path) -> None:
    (built / "README.md").write_text("edited on the Hub", "utf-8")
    assert verify_artifact(built, edited_card=True).ok
    (built / "README.md").unlink()
    assert found(verify_artifact(built, edited_card=True)) == {("files", "README.md")}


def test_what_downloading_adds_is_no_finding(built: Path) -> None:
    (built / ".gitattributes").write_text("*", "utf-8")
    (built / ".cache/huggingface/download").mkdir(parents=True)
    (built / ".cache/huggingface/download/x.lock").write_text("", "utf-8")
    assert verify_artifact(built).ok


@pytest.fixture
def snapshot(tiny_artifact: Path, tmp_path: Path) -> Path:
    """The artifact as the Hub's cache keeps it: links into a store of blobs."""
    place = tmp_path / "models--org--name"
    folder = Path(shutil.copytree(tiny_artifact, place / "snapshots" / ("a" * 40)))
    (place / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = place / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    return folder


def test_the_hubs_cache_may_link_to_its_own_blobs_and_nowhere_else(snapshot: Path, tmp_path: Path) -> None:
    assert verify_artifact(snapshot).ok
    (tmp_path / "outside").write_bytes((snapshot / UNET).read_bytes())
    (snapshot / UNET).unlink()
    (snapshot / UNET).symlink_to(tmp_path / "outside")
    assert ("files", UNET) in found(verify_artifact(snapshot))


def test_a_folder_that_is_no_artifact_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an artifact"):
        verify_artifact(tmp_path)


def with_weights(folder: Path, change: Callable[[bytearray], object], *names: str) -> None:
    """Change the weights and let every record follow, as a forger who signs would: only the base knows."""
    for name in names:
        data = bytearray((folder / name).read_bytes())
        change(data)
        (folder / name).write_bytes(data)
    files = Checkpoint.open(folder).files()
    edited = listing_digest({name: Artifact(folder).sha256(name) for name in files})
    forge(folder, layout.GATES, lambda gates: gates.update(edited=edited))


def test_the_checkpoint_is_its_base_plus_the_published_change(built: Path, tiny_checkpoint: Path) -> None:
    report = verify_artifact(built, base=tiny_checkpoint)
    assert report.ok
    assert report.as_dict()["checks"]["base"] == "passed"


@pytest.mark.parametrize("name", [UNET, VAE])
def test_a_change_that_was_not_published_is_found_by_the_base_alone(
    name: str, built: Path, tiny_checkpoint: Path
) -> None:
    def nudge(data: bytearray) -> None:
        data[-1] ^= 1

    with_weights(built, nudge, name)
    assert verify_artifact(built).ok, "a consistent forgery"
    assert found(verify_artifact(built, base=tiny_checkpoint)) == {("base", name)}


def test_another_base_is_refused(built: Path, tiny_checkpoint_fp16: Path) -> None:
    assert found(verify_artifact(built, base=tiny_checkpoint_fp16)) == {("base", layout.LOCK)}
