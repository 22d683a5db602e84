"""The whole proof on a tiny random checkpoint: stock sampling, a real classifier, gates.json and the grid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compiler.artifact import GRID, Artifact
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.gates import measure, plan_gates, run_gates
from compiler.generate import Draw, generate
from compiler.progress import Silent, Task
from editspec import EditSpec, Erase, EvaluatorRef, Gate, PathBase

Copy = Callable[[Path], Path]


class Counting(Silent):
    """Remembers which tasks were announced."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float | None]] = []

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        self.tasks.append((name, total))
        with super().task(name, total) as task:
            yield task


SHORT: dict[str, Any] = {"steps": 1, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def edited(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a decoder that draws other pictures, as if by a strong edit."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("edited") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] + 2.0
    save_file(weights, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path, edited: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier biased so that the base shows "seen" and the edited checkpoint does not."""
    import torch
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("models") / "judge"
    labels = {0: "object:seen", 1: "object:other"}
    ids = {label: number for number, label in labels.items()}
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=labels,
        label2id=ids,
    )
    model = ResNetForImageClassification(config).eval()
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0)
    drawn = [generate(f, [Draw("a star", s) for s in range(4)], 2.0, 1) for f in (tiny_checkpoint, edited)]
    with torch.no_grad():
        before, after = (
            model.resnet(
                processor(images=list(images), return_tensors="pt")["pixel_values"]
            ).pooler_output.flatten(1)
            for images in drawn
        )
        towards = (before.mean(0) - after.mean(0)) / (before.mean(0) - after.mean(0)).norm()
        head = model.classifier[1]
        head.weight.copy_(torch.stack([100 * towards, -100 * towards]))
        head.bias.copy_(-(head.weight @ (before.mean(0) + after.mean(0)) / 2))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def spec_for(classifier: Path, *gates: Gate) -> EditSpec:
    return EditSpec(
        name="proof",
        base=PathBase(path="unused"),
        edits=(Erase(id="e", concept="star"),),
        gates=gates,
        evaluators=(EvaluatorRef(id="judge", model=str(classifier), labels={"star": "object:seen"}),),
        seed=3,
    )


ERASED = Gate(
    gate="erased", id="no-star", concept="star", max_rate=0.05, prompts=("a {}", "a red {}"), **SHORT
)
KEPT = Gate(gate="preserved", id="keeps", concepts=("star",), max_loss=0.05, prompts=("a {}",), **SHORT)
DRIFT = Gate(gate="drift", id="still", prompts=("a tree", "a house"), max_drift=0.1, trials=8, **SHORT)


def test_a_real_edit_is_measured_from_checkpoint_to_verdict(
    tiny_checkpoint: Path, edited: Path, classifier: Path, copy_of: Copy
) -> None:
    built = Artifact(copy_of(edited))
    report = run_gates(spec_for(classifier, ERASED, KEPT, DRIFT), Checkpoint.open(tiny_checkpoint), built)
    erased, kept, drift = report.results
    assert erased.passed
    assert erased.control["rate"] == 1.0
    assert not kept.passed
    assert kept.observed == 1.0
    assert not drift.passed
    assert not report.passed
    grid = Image.open(built.path(GRID))
    assert grid.size[0] > 6 * 128
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert str(built.folder) not in text
    assert str(classifier.parent) not in text


def test_an_unedited_checkpoint_keeps_everything_and_erases_nothing(
    tiny_checkpoint: Path, classifier: Path, copy_of: Copy
) -> None:
    built = Artifact(copy_of(tiny_checkpoint))
    report = run_gates(spec_for(classifier, ERASED, KEPT, DRIFT), Checkpoint.open(tiny_checkpoint), built)
    assert [result.passed for result in report.results] == [False, True, True]
    assert report.results[2].bound == 0


def test_the_same_build_gives_the_same_report_with_and_without_a_cache(
    tiny_checkpoint: Path, edited: Path, classifier: Path, tmp_path: Path
) -> None:
    from compiler.evaluators import open_evaluators

    spec = spec_for(classifier, ERASED, DRIFT)
    checkpoints = Checkpoint.open(tiny_checkpoint), Checkpoint.open(edited)
    cache = StageCache(tmp_path / "cache")
    reports = [
        json.dumps(measure(spec, *checkpoints, open_evaluators(spec), cache=one).as_dict())
        for one in (None, cache, cache)
    ]
    assert reports[0] == reports[1] == reports[2]


def test_gates_that_share_draws_share_their_pictures(
    tiny_checkpoint: Path, edited: Path, classifier: Path
) -> None:
    from compiler.evaluators import open_evaluators

    spec = spec_for(classifier, KEPT, replace(KEPT, id="again", confidence=0.9))
    checkpoints = Checkpoint.open(tiny_checkpoint), Checkpoint.open(edited)
    progress = Counting()
    measure(spec, *checkpoints, open_evaluators(spec), progress=progress)
    longest = max(len(plan.trials) for plan in plan_gates(spec))
    assert progress.tasks == [("draw base", longest), ("draw edited", longest)]


def test_a_spec_without_gates_has_an_empty_report_and_no_grid(
    tiny_checkpoint: Path, classifier: Path, copy_of: Copy
) -> None:
    built = Artifact(copy_of(tiny_checkpoint))
    report = run_gates(spec_for(classifier), Checkpoint.open(tiny_checkpoint), built)
    assert report.passed
    assert report.results == ()
    assert not built.path(GRID).exists()


def test_the_grid_shows_each_gate_by_its_most_drawn_prompts(
    tiny_checkpoint: Path, edited: Path, classifier: Path
) -> None:
    from compiler.evaluators import open_evaluators

    spec = spec_for(classifier, ERASED, DRIFT)
    report = measure(spec, Checkpoint.open(tiny_checkpoint), Checkpoint.open(edited), open_evaluators(spec))
    titles = [row.title for row in report.gallery]
    assert titles == ["no-star: a star", "no-star: a red star", "still: a tree", "still: a house"]
    assert all(row.base.shape == row.edited.shape for row in report.gallery)
    assert not np.array_equal(report.gallery[0].base, report.gallery[0].edited)
