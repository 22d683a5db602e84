from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import stat
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from compiler import file_copy, fold
from compiler.checkpoint import Checkpoint
from compiler.deltas import save
from compiler.link import LinkError, link, linking
from compiler.safetensors_file import read_header
from compiler.selections import select
from editspec.errors import InputError

Copy = Callable[[Path], Path]

UNET = Path("unet", "diffusion_pytorch_model.safetensors")


def deltas_for(
    base: Checkpoint, selection: str = "cross-attention-kv", size: float = 0.1
) -> dict[str, torch.Tensor]:
    entries = base.weights("unet").entries
    generator = torch.Generator().manual_seed(1)
    return {
        name: size * torch.randn(entries[name].shape, generator=generator)
        for name in select(entries, selection)
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("selection", ["cross-attention-kv", "full"])
def test_the_result_has_the_folded_tensors_and_else_the_bytes_of_the_base(
    tiny_checkpoint_fp16: Path, tmp_path: Path, selection: str
) -> None:
    base = Checkpoint.open(tiny_checkpoint_fp16)
    deltas = deltas_for(base, selection)
    link(base, deltas, tmp_path / "out")
    before, after = load_file(tiny_checkpoint_fp16 / UNET), load_file(tmp_path / "out" / UNET)
    assert list(after) == list(before)
    for name, tensor in before.items():
        expected = (tensor.float() + deltas[name]).half() if name in deltas else tensor
        assert after[name].dtype == tensor.dtype
        assert after[name].equal(expected), name
    untouched = {name for name in contents(tiny_checkpoint_fp16) if name != str(UNET)}
    old, new = contents(tiny_checkpoint_fp16), contents(tmp_path / "out")
    assert old.keys() == new.keys()
    assert all(old[name] == new[name] for name in untouched)


def test_stock_diffusers_loads_exactly_what_was_folded(tiny_checkpoint_fp16: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    base = Checkpoint.open(tiny_checkpoint_fp16)
    link(base, deltas_for(base), tmp_path / "out")
    linked = Checkpoint.open(tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float16)
    loaded = pipeline.unet.state_dict()
    assert loaded.keys() == linked.weights("unet").entries.keys()
    assert all(tensor.equal(linked.weights("unet").read(name)) for name, tensor in loaded.items())


def test_without_deltas_the_result_is_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = link(Checkpoint.open(tiny_checkpoint), {}, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tiny_checkpoint)
    assert report.tensors == ()
    assert report.lost_fraction == 0.0


def test_linking_twice_gives_equal_bytes_and_leaves_the_base_alone(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before = contents(tiny_checkpoint)
    base = Checkpoint.open(tiny_checkpoint)
    for name in ("one", "two"):
        link(base, deltas_for(base), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tiny_checkpoint) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 1e-8, 1e-4, 1e-2, 1.0]))
def test_a_sum_is_rounded_once_and_what_is_lost_is_counted(
    tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, seed: int, scale: float
) -> None:
    root, out = tmp_path / "base", tmp_path / "out"
    if not root.exists():
        shutil.copytree(tiny_checkpoint, root)
        save_file({name: tensor.to(dtype) for name, tensor in load_file(root / UNET).items()}, root / UNET)
    base = Checkpoint.open(root)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    old = base.weights("unet").read(name)
    delta = scale * torch.randn(old.shape, generator=torch.Generator().manual_seed(seed))
    delta[0, 0] = 0.0
    report = link(base, {name: delta}, out).tensors[0]
    new = Checkpoint.open(out).weights("unet").read(name)
    shutil.rmtree(out)
    wide = torch.promote_types(dtype, torch.float32)
    assert new.equal((old.to(wide) + delta).to(dtype))
    assert report.changed == int((delta != 0).sum())
    assert report.lost == int(((delta != 0) & (new == old)).sum())
    missed = (new.to(wide) - old.to(wide) - delta).double().norm()
    expected = float(missed / delta.double().norm()) if scale else 0.0
    assert report.relative_error == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_a_delta_below_the_step_of_the_format_is_reported_as_lost(
    tiny_checkpoint_fp16: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_checkpoint_fp16)
    report = link(base, deltas_for(base, size=1e-9), tmp_path / "out")
    assert report.lost_fraction > 0.95
    tensor = next(iter(report.as_dict()["tensors"].values()))
    assert tensor["lost_fraction"] > 0.9
    assert tensor["relative_error"] > 0.5
    json.dumps(report.as_dict(), allow_nan=False)


def test_each_delta_is_asked_for_once_and_few_are_held(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    entries = base.weights("unet").entries

    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    asked: list[str] = []

    class Lazy(Mapping[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            assert len(alive) < fold.MAX_THREADS
            asked.append(name)
            tensor = torch.zeros(entries[name].shape)
            alive.add(tensor)
            return tensor

        def __iter__(self) -> Iterator[str]:
            return iter(select(entries, "full"))

        def __contains__(self, name: object) -> bool:
            return name in set(self)

        def __len__(self) -> int:
            return len(select(entries, "full"))

    link(base, Lazy(), tmp_path / "out")
    assert sorted(asked) == sorted(select(entries, "full"))
    assert contents(tmp_path / "out") == contents(tiny_checkpoint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_deltas_may_lie_in_a_file_and_are_read_in_pieces(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(fold, "PIECE", 1000)  # no tensor's length is a multiple of it
    root = copy_of(tiny_checkpoint)
    save_file({name: tensor.to(dtype) for name, tensor in load_file(root / UNET).items()}, root / UNET)
    base = Checkpoint.open(root)
    deltas = deltas_for(base, "full")
    save(deltas, tmp_path / "deltas.safetensors")
    entries = read_header(tmp_path / "deltas.safetensors")[0]
    reports = [link(base, given, tmp_path / name) for name, given in (("a", deltas), ("b", entries))]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert reports[0] == reports[1]


def test_a_delta_in_a_file_that_does_not_fit_is_our_fault(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    name = min(deltas_for(base))
    save_file({name: deltas_for(base)[name].half()}, tmp_path / "half.safetensors")
    with pytest.raises(LinkError, match="F16"):
        link(base, read_header(tmp_path / "half.safetensors")[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sums_over_a_tensor_are_those_of_one_thread_in_every_thread() -> None:
    numbers = torch.randn(20480, generator=torch.Generator().manual_seed(1))  # MKL shares out as many

    def total() -> float:
        fold.one_thread_here()
        return float(torch.dot(numbers, numbers))

    with fold.one_thread_each():
        alone = float(torch.dot(numbers, numbers))
        for _ in range(20):
            with ThreadPoolExecutor(1) as pool:  # a thread that has done nothing yet
                assert pool.submit(total).result() == alone


def test_metadata_beyond_the_format_is_dropped_and_the_tensors_stay(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    root = copy_of(tiny_checkpoint)
    save_file(
        load_file(root / UNET), root / UNET, metadata={"format": "pt", "trained_in": "/home/me", "a": "b"}
    )
    base = Checkpoint.open(root)
    for name, deltas in (("plain", {}), ("edited", deltas_for(base))):
        link(base, deltas, tmp_path / name)
        written = (tmp_path / name / UNET).read_bytes()
        header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
        assert header["__metadata__"] == {"format": "pt"}
    assert contents(tmp_path / "plain") == contents(tiny_checkpoint)


def test_configurations_lose_what_they_say_about_a_machine(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    root = copy_of(tiny_checkpoint)
    for name, key in (
        ("unet/config.json", "_name_or_path"),
        ("model_index.json", "_name_or_path"),
        ("tokenizer/tokenizer_config.json", "name_or_path"),
    ):
        document = json.loads((root / name).read_text())
        document |= {key: "/home/me/model", "inner": {key: "/home/me"}}
        (root / name).write_text(json.dumps(document))
    link(Checkpoint.open(root), {}, tmp_path / "out")
    assert not any(b"/home/me" in data for data in contents(tmp_path / "out").values())
    document = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert document["in_channels"] == 4


def test_everybody_may_read_the_result_whatever_the_umask(tiny_checkpoint: Path, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        link(Checkpoint.open(tiny_checkpoint), {}, tmp_path / "out")
    finally:
        os.umask(old)
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_stay_shards_and_a_variant_gets_plain_names(
    tiny_checkpoint_fp16: Path, copy_of: Copy, tmp_path: Path, variant: str | None
) -> None:
    from diffusers import DiffusionPipeline

    root = copy_of(tiny_checkpoint_fp16)
    pipeline = DiffusionPipeline.from_pretrained(root, dtype=torch.float16)
    shutil.rmtree(root / "unet")
    pipeline.unet.save_pretrained(root / "unet", max_shard_size="500kB", variant=variant)
    base = Checkpoint.open(root, variant)
    assert len(base.weights("unet").files) > 2
    deltas = deltas_for(base)
    link(base, deltas, tmp_path / "out")
    linked = Checkpoint.open(tmp_path / "out").weights("unet")
    assert len(linked.files) == len(base.weights("unet").files)
    assert all("fp16" not in path.name for path in linked.files)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out", dtype=torch.float16).unet.state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        assert loaded[name].equal((tensor.float() + deltas[name]).half() if name in deltas else tensor)


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (torch.zeros(3, 3), "not"),
        (torch.zeros(32, 32, dtype=torch.float16), "float16"),
        (torch.full((32, 32), torch.nan), "the delta of .* is not finite"),
        (torch.full((32, 32), torch.inf), "the delta of .* is not finite"),
        (torch.full((32, 32), 1e5), "leaves the range of F16"),
    ],
)
def test_a_delta_that_does_not_fit_is_our_fault_and_leaves_nothing(
    tiny_checkpoint_fp16: Path, tmp_path: Path, delta: torch.Tensor, message: str
) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    with pytest.raises(LinkError, match=message):
        link(Checkpoint.open(tiny_checkpoint_fp16), {name: delta}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_or_a_filled_folder_is_our_fault(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    with pytest.raises(LinkError, match="no ghost"):
        link(base, {"ghost": torch.zeros(1)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "filled").touch()
    with pytest.raises(LinkError, match="not empty"):
        link(base, {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["filled"]


def test_numbers_of_the_base_that_are_not_finite_are_bad_input(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    root = copy_of(tiny_checkpoint)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    tensors = load_file(root / UNET)
    tensors[name][0, 0] = torch.inf
    save_file(tensors, root / UNET)
    base = Checkpoint.open(root)
    with pytest.raises(InputError, match="not finite"):
        link(base, {name: torch.zeros(base.weights("unet").entries[name].shape)}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("edited", [False, True])
def test_a_base_that_shrinks_while_linking_is_bad_input(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path, edited: bool
) -> None:
    base = Checkpoint.open(copy_of(tiny_checkpoint))
    os.truncate(base.root / UNET, (base.root / UNET).stat().st_size - 4)
    with pytest.raises(InputError, match=r"shorter|cut short"):
        link(base, deltas_for(base, "full") if edited else {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_ends_early_is_noticed_in_the_middle_of_copying(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234")
    with (
        file_copy.opened(tmp_path / "short") as source,
        file_copy.create(tmp_path / "copy") as sink,
        pytest.raises(InputError, match="shorter"),
    ):
        file_copy.copy_range(source, sink, 0, 8, 0, tmp_path / "short")


@pytest.mark.parametrize("answer", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, None])
def test_where_the_kernel_cannot_copy_a_buffer_does(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | None
) -> None:
    def refuse(*arguments: int) -> int:
        if answer is None:
            return 0  # some file systems answer so, though there is more
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    link(Checkpoint.open(tiny_checkpoint), {}, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tiny_checkpoint)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_the_output_may_lie_on_another_disk(tiny_checkpoint: Path) -> None:
    out = Path("/dev/shm") / f"excise-test-{os.getpid()}"
    try:
        link(Checkpoint.open(tiny_checkpoint), {}, out)
        assert contents(out) == contents(tiny_checkpoint)
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("edited", [False, True])
def test_a_file_that_may_not_grow_is_bad_input_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, edited: bool
) -> None:
    import resource

    base = Checkpoint.open(tiny_checkpoint)
    deltas = deltas_for(base) if edited else {}
    size = (tiny_checkpoint / UNET).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, size // 3, size - 1):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(InputError) as caught:
                link(base, deltas, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert str(tmp_path / "out") in caught.value.where
        assert "large" in caught.value.what
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("edited", [False, True])
def test_a_full_disk_is_bad_input_and_leaves_nothing(
    tiny_checkpoint: Path, small_disk: Callable[[str], Path], edited: bool
) -> None:
    disk, base = small_disk("1m"), Checkpoint.open(tiny_checkpoint)
    with pytest.raises(InputError, match="the disk is full"):
        link(base, deltas_for(base, "full") if edited else {}, disk / "out")
    assert list(disk.iterdir()) == []


def test_what_no_edit_touches_is_copied_while_the_deltas_are_made(
    tiny_checkpoint_fp16: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_checkpoint_fp16)
    deltas = deltas_for(base)
    link(base, deltas, tmp_path / "at once")
    copied: queue.Queue[Path] = queue.Queue()
    with linking(base, deltas.keys(), tmp_path / "out", copied.put) as begun:
        seen = {copied.get(timeout=60) for _ in base.weighted}  # all of them, before any delta was given
        assert tmp_path / "out" / UNET in seen
        untouched = load_file(tmp_path / "out" / UNET)
        report = begun.fold(deltas)
    for name, tensor in load_file(tiny_checkpoint_fp16 / UNET).items():
        assert name in deltas or untouched[name].equal(tensor), name
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")
    assert [tensor.name for tensor in report.tensors] == sorted(deltas)


def test_an_announced_tensor_without_a_delta_stays_that_of_the_base(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    deltas = deltas_for(base)
    kept = min(deltas)
    with linking(base, deltas.keys(), tmp_path / "out") as begun:
        begun.fold({name: delta for name, delta in deltas.items() if name != kept})
    link(base, deltas | {kept: torch.zeros_like(deltas[kept])}, tmp_path / "zero")
    assert contents(tmp_path / "out") == contents(tmp_path / "zero")


def test_a_delta_that_was_not_announced_is_our_fault_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(tiny_checkpoint)
    deltas = deltas_for(base)
    with (
        pytest.raises(LinkError, match="not announced"),
        linking(base, [min(deltas)], tmp_path / "out") as begun,
    ):
        begun.fold(deltas)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("made", [True, False])
def test_an_edit_that_fails_while_the_rest_is_copied_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, failure: type[BaseException], made: bool
) -> None:
    out = tmp_path / "out"
    if not made:
        out.mkdir()
    with pytest.raises(failure), linking(Checkpoint.open(tiny_checkpoint), [], out):
        raise failure
    assert (not out.exists()) if made else list(out.iterdir()) == []
