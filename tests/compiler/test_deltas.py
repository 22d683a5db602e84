from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from compiler import deltas
from compiler.safetensors_file import TensorEntry

SHAPES = st.dictionaries(
    st.from_regex(r"[a-z]{1,5}\.weight", fullmatch=True),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    max_size=4,
)


def entry(name: str, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(name, "F16", shape, Path("x"), 0, 0)


ENTRIES = {"a.weight": entry("a.weight", (2, 3)), "b.weight": entry("b.weight", (3,))}


@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES)
def test_what_is_saved_is_loaded_and_the_library_reads_it_too(
    shapes: dict[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("deltas") / "d.safetensors"
    generator = torch.Generator().manual_seed(0)
    given_ = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    deltas.save(given_, path)
    for loaded in (deltas.load(path), load_file(path)):
        assert sorted(loaded) == sorted(given_)
        assert all(torch.equal(loaded[name], given_[name]) for name in given_)


def test_equal_deltas_give_equal_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    one = {"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(3)}
    deltas.save(one, tmp_path / "1")
    deltas.save(dict(reversed(one.items())), tmp_path / "2")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o644


def test_a_transposed_view_is_saved_as_it_reads(tmp_path: Path) -> None:
    view = torch.arange(6.0).reshape(2, 3).T
    deltas.save({"a.weight": view}, tmp_path / "d")
    assert torch.equal(deltas.load(tmp_path / "d")["a.weight"], view)


def test_good_deltas_pass() -> None:
    deltas.check({"a.weight": torch.ones(2, 3)}, ["a.weight", "b.weight"], ENTRIES)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"b.weight": torch.ones(3)}, "never declared"),
        ({"a.weight": torch.ones(3, 2)}, r"\(3, 2\), in the base \(2, 3\)"),
        ({"a.weight": torch.ones(2, 3).half()}, "torch.float16"),
        ({"a.weight": torch.full((2, 3), float("nan"))}, "not finite"),
        ({"a.weight": torch.full((2, 3), float("inf"))}, "not finite"),
        ({"c.weight": torch.ones(1)}, "no tensor c.weight"),
    ],
)
def test_a_pass_that_breaks_its_word_is_told_how(bad: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(deltas.DeltaFault, match=says):
        deltas.check(bad, ["a.weight", "c.weight"], ENTRIES)


def test_adding_leaves_both_sides_alone() -> None:
    one, two = {"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(1)}
    total = deltas.added(one, two)
    assert torch.equal(total["a"], torch.full((2,), 2.0))
    assert torch.equal(total["b"], torch.ones(1))
    assert torch.equal(one["a"], torch.ones(2))
    assert sorted(one) == ["a"]


def test_statistics_tell_how_far_a_tensor_moved() -> None:
    found = deltas.statistics("a", torch.tensor([3.0, 0.0, -4.0]), torch.tensor([0.0, 10.0, 0.0]))
    assert found["norm"] == 5.0
    assert found["relative"] == 0.5
    assert found["max_abs"] == 4.0
    assert (found["changed"], found["parameters"]) == (2, 3)
    assert deltas.statistics("a", torch.ones(1), torch.zeros(1))["relative"] is None


def test_between_two_changes_lies_a_share_of_the_way() -> None:
    first, second = {"a.weight": torch.zeros(2, 3)}, {"a.weight": torch.full((2, 3), 4.0)}
    for share, expected in ((0.0, 0.0), (0.25, 1.0), (1.0, 4.0)):
        found = deltas.between(first, second, share)
        torch.testing.assert_close(found["a.weight"], torch.full((2, 3), expected))
