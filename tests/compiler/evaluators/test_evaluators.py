from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.evaluators import adapters, open_evaluators, register_embedded
from compiler.evaluators.evaluator import grouped_softmax
from compiler.evaluators.image_classification import ImageClassification
from compiler.evaluators.onnx_detector import best_boxes, square
from compiler.evaluators.zero_shot import ZeroShot
from editspec import EditSpec, EvaluatorRef, InputError, PathBase

Images = np.ndarray[Any, np.dtype[np.uint8]]

LABELS = (
    "object:star", "object:ring", "object:none", "flame:flame", "flame:none", "contains-boat:yes",
    "contains-boat:no", "style:dotted", "style:plain",
)  # fmt: skip


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("models") / "oracle", LABELS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip", tiny_checkpoint)


@pytest.fixture
def images() -> Images:
    return np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), dtype=np.uint8)


def save_classifier(folder: Path, labels: Sequence[str]) -> Path:
    import torch
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=1.0).save_pretrained(folder)
    return folder


def save_clip(folder: Path, tiny_checkpoint: Path) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": end, "pad_token_id": end,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ref(**fields: Any) -> EvaluatorRef:
    return EvaluatorRef(**{"id": "judge", "model": "unused", **fields})


def test_scores_are_probabilities_within_each_group(classifier: Path, images: Images) -> None:
    evaluator = ImageClassification(ref(), classifier)
    scores = evaluator.score(images)
    assert scores.shape == (70, len(LABELS))
    assert scores.dtype == np.float32
    for columns in ([0, 1, 2], [3, 4], [5, 6], [7, 8]):
        assert scores[:, columns].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_scores_equal_those_of_the_plain_pipeline(classifier: Path, images: Images) -> None:
    from PIL import Image
    from transformers import pipeline

    plain = pipeline("image-classification", str(classifier), function_to_apply="none", top_k=len(LABELS))
    answers = {one["label"]: one["score"] for one in plain(Image.fromarray(images[0]))}
    expected = grouped_softmax(np.array([[answers[label] for label in LABELS]], np.float32), LABELS)
    assert ImageClassification(ref(), classifier).score(images[:1]) == pytest.approx(expected, abs=1e-5)


def test_labels_are_known_before_any_model_is_loaded(classifier: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from editspec import EvaluatorRef\n"
        "from compiler.evaluators.image_classification import ImageClassification\n"
        f"one = ImageClassification(EvaluatorRef(id='a', model='x'), Path({str(classifier)!r}))\n"
        "assert one.label_for('star') == 'object:star'\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("concept", "label"),
    [
        ("star", "object:star"),
        ("object:star", "object:star"),
        ("flame", "flame:flame"),
        ("boat", None),
        ("contains-boat", "contains-boat:yes"),
        ("Dotted", "style:dotted"),
        ("unicorn", None),
    ],
)
def test_a_concept_finds_its_label(classifier: Path, concept: str, label: str | None) -> None:
    assert ImageClassification(ref(), classifier).label_for(concept) == label


def test_the_specs_own_word_for_a_concept_comes_first(classifier: Path) -> None:
    evaluator = ImageClassification(ref(labels={"fire": "flame:flame", "star": "object:ring"}), classifier)
    assert evaluator.label_for("fire") == "flame:flame"
    assert evaluator.label_for("star") == "object:ring"
    assert evaluator.label_for("star", "object:star") == "object:star"


def test_synonyms_and_underscores_of_published_label_lists_are_understood(tmp_path: Path) -> None:
    labels = ("tench, Tinca tinca", "garbage_truck", "church")
    evaluator = ImageClassification(ref(), save_classifier(tmp_path / "m", labels))
    assert evaluator.label_for("tinca tinca") == "tench, Tinca tinca"
    assert evaluator.label_for("garbage truck") == "garbage_truck"


def test_a_concept_with_two_labels_must_be_told_which(classifier: Path) -> None:
    with pytest.raises(InputError, match="several labels mean 'none'"):
        ImageClassification(ref(), classifier).label_for("none")


def test_a_picture_shows_the_answer_of_its_group_or_what_reaches_the_threshold(classifier: Path) -> None:
    scores = np.zeros((3, len(LABELS)), np.float32)
    scores[:, :3] = [[0.4, 0.35, 0.25], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8]]
    assert ImageClassification(ref(), classifier).shows(scores, "object:star").tolist() == [
        True,
        False,
        False,
    ]
    keen = ImageClassification(ref(threshold=0.3), classifier)
    assert keen.shows(scores, "object:star").tolist() == [True, True, False]


def test_features_are_one_row_for_each_picture(classifier: Path, clip: Path, images: Images) -> None:
    assert ImageClassification(ref(), classifier).features(images).shape == (70, 16)
    zero_shot = ZeroShot(ref(labels={"a": "a star", "b": "a moon"}), clip)
    assert np.linalg.norm(zero_shot.features(images), axis=1) == pytest.approx(1, abs=1e-5)


def test_zero_shot_weighs_texts_against_their_group_as_clip_does(clip: Path, images: Images) -> None:
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    texts = {
        "object:star": "a star",
        "object:moon": "a moon",
        "style:dotted": "dotted",
        "style:plain": "plain",
    }
    scores = ZeroShot(ref(labels=texts), clip).score(images[:3])
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=list(images[:3]), return_tensors="pt")
    with torch.no_grad():
        tokens = tokenizer(list(texts.values()), padding=True, return_tensors="pt")
        logits = model.eval()(**tokens, **pixels).logits_per_image
    expected = torch.cat([logits[:, :2].softmax(1), logits[:, 2:].softmax(1)], 1)
    assert scores == pytest.approx(expected.numpy(), abs=1e-5)


def test_zero_shot_refuses_a_question_with_one_answer(clip: Path) -> None:
    with pytest.raises(InputError, match="one text, which would win on every picture"):
        _ = ZeroShot(ref(labels={"star": "a star"}), clip).labels
    with pytest.raises(InputError, match="no texts to choose between"):
        _ = ZeroShot(ref(), clip).labels


def test_zero_shot_refuses_a_text_over_its_window(clip: Path, images: Images) -> None:
    long = {"star": "star " * 20, "none": "nothing"}
    with pytest.raises(InputError, match="longer than its window of 16 tokens"):
        ZeroShot(ref(labels=long), clip).score(images[:1])


def test_calibration_travels_with_the_evaluator(classifier: Path) -> None:
    assert ImageClassification(ref(), classifier).calibration is None
    path = classifier / "calibration.json"
    path.write_text(json.dumps({"labels": {"object:star": {"fnr": 0.01, "fpr": 0.002, "n": 1000}}}))
    evaluator = ImageClassification(ref(), classifier)
    assert evaluator.error_rates("object:star") == (0.01, 0.002)
    assert evaluator.error_rates("object:ring") is None
    assert evaluator.facts()["calibration"]["labels"]["object:star"]["n"] == 1000
    path.write_text(json.dumps({"labels": {"object:star": {"fnr": 2, "fpr": 0}}}))
    with pytest.raises(InputError, match="outside 0 to 1"):
        ImageClassification(ref(), classifier).error_rates("object:star")
    path.unlink()


def test_facts_pin_the_model_by_digest_and_name_no_path(classifier: Path) -> None:
    facts = ImageClassification(ref(), classifier).facts()
    assert len(facts["files"]["model.safetensors"]) == 64
    assert str(classifier) not in json.dumps(facts)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no pickles"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda f: rewrite(f / "config.json", auto_map={"AutoModel": "code.Model"}), "code of its own"),
        (lambda f: rewrite(f / "config.json", id2label={"0": "a", "1": "a"}), "all different"),
    ],
)
def test_a_folder_that_is_no_model_is_bad_input(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = save_classifier(tmp_path / "m", ("a", "b"))
    damage(folder)
    with pytest.raises(InputError, match=message):
        _ = ImageClassification(ref(), folder).labels


def test_truncated_weights_are_bad_input(tmp_path: Path, images: Images) -> None:
    folder = save_classifier(tmp_path / "m", ("a", "b"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="cannot be loaded"):
        ImageClassification(ref(), folder).score(images[:1])


def test_evaluators_of_a_spec_are_found_beside_it(classifier: Path) -> None:
    one = EvaluatorRef(id="oracle", model=classifier.name)
    spec = EditSpec(name="s", base=PathBase(path="b"), edits=(), evaluators=(one,))
    (evaluator,) = open_evaluators(spec, classifier.parent)
    assert evaluator.id == "oracle"
    with pytest.raises(InputError, match="does not exist"):
        open_evaluators(spec, classifier.parent / "elsewhere")


def test_a_word_for_a_label_that_does_not_exist_is_refused(classifier: Path) -> None:
    one = EvaluatorRef(id="oracle", model=str(classifier), labels={"fire": "fame:flame"})
    spec = EditSpec(name="s", base=PathBase(path="b"), edits=(), evaluators=(one,))
    with pytest.raises(InputError, match="has no label 'fame:flame'"):
        open_evaluators(spec)


def test_an_embedded_base_brings_its_evaluators_unless_the_spec_names_some(classifier: Path) -> None:
    register_embedded("pocket-world", lambda: [EvaluatorRef(id="default", model=str(classifier))])
    own = EvaluatorRef(id="own", model=str(classifier))
    base = PathBase(path="pocket-world")
    assert [e.id for e in open_evaluators(EditSpec(name="s", base=base, edits=()))] == ["default"]
    assert [e.id for e in open_evaluators(EditSpec(name="s", base=base, edits=(), evaluators=(own,)))] == [
        "own"
    ]


def test_the_folder_walk_finds_every_adapter_of_the_schema() -> None:
    assert sorted(adapters()) == ["image-classification", "onnx-detector", "zero-shot-image-classification"]


def test_a_pictures_score_is_its_best_boxs_in_either_layout() -> None:
    output = np.zeros((1, 4 + 3, 10), np.float32)
    output[0, 4:, 2] = [0.1, 0.7, 0.2]
    output[0, 4:, 5] = [0.6, 0.1, 0.0]
    for layout in (output, output.transpose(0, 2, 1)):
        found = best_boxes(layout, 3)
        assert found is not None
        assert found.tolist() == pytest.approx([0.6, 0.7, 0.2])
    assert best_boxes(output, 5) is None


def test_pictures_are_padded_to_a_square_and_stay_rgb() -> None:
    image = np.full((20, 40, 3), (255, 0, 51), np.uint8)
    pixels = square(image, 40)
    assert pixels.shape == (1, 3, 40, 40)
    assert pixels[0, :, 5, 5].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert not pixels[0, :, 30, :].any()


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
