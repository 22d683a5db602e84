"""The embedded model as it ships: intact, loadable by stock diffusers, and really edited by a compile."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from compiler.artifact import GATES
from compiler.checkpoint import Checkpoint
from compiler.generate import Draw, generate
from compiler.licence import Licence, base_licences
from editspec import Erase, InputError, load_spec
from excise.cli import run
from excise.commands.compile import build
from excise.embedded import demo_spec, register
from excise.miniature.assets import DATA, EVALUATORS, MODEL, export
from excise.miniature.judging import Verdicts
from excise.miniature.labels import LABELS
from excise.miniature.vocabulary import vocabulary


def test_the_shipped_weights_are_those_of_the_digests_and_fit_the_package() -> None:
    digests = json.loads((DATA / "digests.json").read_text("utf-8"))
    found = {str(p.relative_to(DATA)): p for p in DATA.rglob("*.safetensors")}
    assert sorted(found) == sorted(digests)
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digests[name], name
    assert sum(p.stat().st_size for p in found.values()) < 40e6


def test_the_shipped_configs_name_no_local_path() -> None:
    for config in DATA.rglob("*.json"):
        text = config.read_text("utf-8")
        assert "_name_or_path" not in text
        assert "/tmp" not in text
        assert "/home" not in text


def test_the_shipped_tokenizer_knows_every_word_of_the_world() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    assert all(len(tokenizer(word)["input_ids"]) == 3 for word in vocabulary())


def test_the_card_lists_every_acceptance_figure() -> None:
    figures = json.loads((DATA / "acceptance.json").read_text("utf-8"))
    card = (DATA / "CARD.md").read_text("utf-8")
    assert len(figures) > 20
    assert all(f"| {figure['name']} | {figure['value']:.3f} |" in card for figure in figures)


def test_the_exported_miniature_is_an_ordinary_checkpoint_with_equal_files(tmp_path: Path) -> None:
    folder = export(tmp_path / "mini")
    assert Checkpoint.open(folder).digest == Checkpoint.open(MODEL).digest


@pytest.mark.parametrize("twin", [False, True], ids=["model", "twin"])
def test_an_exported_copy_states_the_licence_that_the_embedded_model_is_under(
    twin: bool, tmp_path: Path
) -> None:
    register()
    folder = export(tmp_path / "copy", twin=twin)
    stated = base_licences(Checkpoint.open(folder))
    assert stated == base_licences(Checkpoint.open(MODEL)) == (Licence("apache-2.0"),)
    text = (folder / "README.md").read_text("utf-8")
    assert ("never-saw twin" in text) is twin


@pytest.mark.slow
def test_a_build_is_rebuilt_bit_for_bit_from_the_embedded_model_and_from_an_exported_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"editspec": 1, "name": "no-star", "base": {"path": "miniature"}}
    spec["edits"] = [{"edit": "erase", "concept": "star", "method": "closed-form", "anchor": "box"}]
    (tmp_path / "spec.json").write_text(json.dumps(spec), "utf-8")
    built = str(tmp_path / "built")
    assert run(["compile", str(tmp_path / "spec.json"), "-o", built, "--device", "cpu"]) == 0
    capsys.readouterr()
    for more in ([], ["--base", str(export(tmp_path / "copy"))]):
        assert run(["verify", built, "--rebuild", "--device", "cpu", "--json", *more]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["rebuild"] == {"ok": True, "differences": [], "notes": []}
        assert report["checks"]["base"] == ("passed" if more else "skipped")


def test_export_refuses_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_oracles_speak_the_labels_of_the_world() -> None:
    for name in EVALUATORS:
        config = json.loads((DATA / name / "config.json").read_text("utf-8"))
        assert tuple(config["id2label"][str(i)] for i in range(len(LABELS))) == LABELS


def test_the_bundled_spec_is_sound() -> None:
    register()
    spec = load_spec(demo_spec())
    assert {edit.method for edit in spec.edits if isinstance(edit, Erase)} == {"esd", "closed-form"}
    assert {gate.gate for gate in spec.gates} == {"erased", "implicit", "preserved", "drift"}


@pytest.mark.slow
def test_a_concept_erased_in_closed_form_is_gone_from_pictures_and_its_neighbour_is_not(
    tmp_path: Path,
) -> None:
    register()
    spec = {
        "editspec": 1,
        "name": "no-star",
        "base": {"path": "miniature"},
        "seed": 3,
        "edits": [
            {"id": "no-star", "edit": "erase", "concept": "star", "method": "closed-form", "anchor": "box"}
        ],
        "preserve": {"concepts": ["sixstar", "moon", "house"]},
        "gates": [{"gate": "erased", "concept": "star", "max_rate": 0.05, "steps": 15}],
    }
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    artifact = build(load_spec(path), tmp_path / "out")
    (gate,) = json.loads((artifact.folder / GATES).read_text("utf-8"))["gates"]
    assert gate["passed"]
    assert gate["bound"] <= 0.05
    draws = [Draw("a photo of a moon", seed) for seed in range(24)]
    kept = [
        Verdicts(generate(folder, draws, steps=15)).shows("object", "moon")
        for folder in (MODEL, tmp_path / "out")
    ]
    assert kept[1].mean() >= kept[0].mean() - 0.1
    before, after = Checkpoint.open(MODEL).weights("unet"), Checkpoint.open(tmp_path / "out").weights("unet")
    moved = [n for n in before.entries if not np.array_equal(before.read(n).numpy(), after.read(n).numpy())]
    assert moved
    assert all("attn2.to_k" in n or "attn2.to_v" in n for n in moved)
