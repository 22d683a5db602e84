"""The mini-CLIP's training: its losses ask what they should, and packing it leaves all else as it ships."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from excise.miniature.acceptance import renewed
from excise.miniature.architecture import build_tokenizer
from excise.miniature.assets import DATA
from excise.miniature.judges import Figure
from excise.miniature.labels import LABEL_GROUPS, SKIP
from excise.miniature.training.clip import (
    NAMED,
    SENTENCES,
    Names,
    _trimmed,
    build_clip,
    contrastive_loss,
    naming_loss,
    truths,
)
from excise.miniature.training.pack import pack
from excise.miniature.vocabulary import vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"), vocabulary())


def test_a_picture_is_not_told_apart_from_another_with_the_same_caption() -> None:
    captions = torch.tensor([[1, 5], [1, 5], [1, 6]])
    shared = torch.full((3, 3), -100.0)
    shared[:2, :2] = shared[2, 2] = 0.0  # the two of one caption are equally near to both
    assert float(contrastive_loss(shared, captions)) == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    own = torch.full((3, 3), -100.0).fill_diagonal_(0.0)
    assert float(contrastive_loss(own, captions)) > 10  # calling the other one wrong costs much
    distinct = torch.tensor([[1, 5], [1, 4], [1, 6]])
    assert float(contrastive_loss(own, distinct)) == pytest.approx(0.0, abs=1e-6)


def test_only_pictures_that_show_a_kind_are_asked_for_its_name() -> None:
    names = {"object": 20 * torch.eye(3)}
    pictures = torch.eye(3)
    right = naming_loss(pictures, names, {"object": torch.tensor([0, 1, SKIP])})
    wrong = naming_loss(pictures, names, {"object": torch.tensor([0, 2, SKIP])})
    assert float(right) < 1e-6 < 9 < float(wrong)


def test_every_name_of_a_kind_has_a_text_of_its_own_in_every_sentence(tokenizer: CLIPTokenizer) -> None:
    names = Names(tokenizer)
    assert names.ids.keys() == SENTENCES.keys()
    for group, ids in names.ids.items():
        assert ids.shape[:2] == (len(SENTENCES[group]), len(NAMED[group]))
        for sentence in ids:
            assert len({tuple(text.tolist()) for text in sentence}) == len(NAMED[group])
            assert all(tokenizer.eos_token_id in text for text in sentence)  # none was cut
    rare = set(SENTENCES) - set(names.drawn(np.random.default_rng(0), 0))
    assert rare
    assert set(names.drawn(np.random.default_rng(0), 1)) == set(SENTENCES)


def test_cutting_off_the_padding_changes_no_text(tokenizer: CLIPTokenizer) -> None:
    model = build_clip(tokenizer).eval()
    texts = ["a red star", "a striped blue house on night"]
    ids = torch.tensor(tokenizer(texts, padding="max_length", max_length=16)["input_ids"])
    short = _trimmed(ids, tokenizer.eos_token_id)
    assert short.shape[1] == 8
    with torch.no_grad():
        whole = model.get_text_features(input_ids=ids).pooler_output
        assert torch.allclose(model.get_text_features(input_ids=short).pooler_output, whole, atol=1e-5)


def test_the_truth_of_a_scene_is_what_pictures_are_named_by() -> None:
    found = truths(7, 200)
    assert found.shape == (200, len(LABEL_GROUPS))
    column = found[:, list(LABEL_GROUPS).index("object")]
    assert len(set(column[column != SKIP].tolist())) > 8
    for group, names in NAMED.items():
        assert found[:, list(LABEL_GROUPS).index(group)].max() < len(names)


def test_packing_one_evaluator_leaves_everything_else_as_it_ships(tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    files = {"model/unet/a.safetensors": b"unet", "mini-clip/model.safetensors": b"old", "CARD.md": b"card"}
    for name, content in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    (work / "mini-clip").mkdir(parents=True)
    (work / "mini-clip" / "model.safetensors").write_bytes(b"new")
    (work / "mini-clip" / "config.json").write_text('{"_name_or_path": "/somewhere", "kept": 1}')
    pack(work, data)
    assert (data / "mini-clip" / "model.safetensors").read_bytes() == b"new"
    assert json.loads((data / "mini-clip" / "config.json").read_text()) == {"kept": 1}
    assert (data / "model" / "unet" / "a.safetensors").read_bytes() == b"unet"
    assert (data / "CARD.md").read_bytes() == b"card"
    digests = json.loads((data / "digests.json").read_text())
    assert digests == {
        "mini-clip/model.safetensors": hashlib.sha256(b"new").hexdigest(),
        "model/unet/a.safetensors": hashlib.sha256(b"unet").hexdigest(),
    }


def test_a_part_measured_again_keeps_the_other_figures_and_their_order() -> None:
    known = [Figure(name, 0.1, ">= 0.9", met=False, n=10) for name in "abc"]
    again = Figure("b", 0.95, ">= 0.9", met=True, n=20)
    new = Figure("d", 1.0, ">= 0.9", met=True, n=5)
    assert renewed(known, [again, new]) == [known[0], again, known[2], new]


def test_the_shipped_mini_clip_is_a_stock_model_that_fits_its_tokenizer() -> None:
    from transformers import CLIPModel

    folder = DATA / "mini-clip"
    model, report = CLIPModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.text_config.vocab_size == len(CLIPTokenizer.from_pretrained(folder))
