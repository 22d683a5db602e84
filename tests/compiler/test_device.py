from __future__ import annotations

import pytest
import torch

from compiler import device
from editspec.errors import InputError


def test_auto_takes_the_best_there_is_and_torch_agrees() -> None:
    chosen = device.choose()
    assert chosen.kind == ("cuda" if torch.cuda.is_available() else chosen.kind)
    assert chosen.open().type == chosen.kind
    assert chosen.memory_bytes > 0
    assert chosen.flops > 0


def test_the_cpu_is_always_there() -> None:
    chosen = device.choose("cpu")
    assert chosen.device_class.startswith("cpu ")
    assert chosen.cores >= 1


def test_memory_and_cores_do_not_name_another_class_of_machine() -> None:
    one = device.Device("cpu", "x86_64 avx2", 1, 1)
    assert one.device_class == device.Device("cpu", "x86_64 avx2", 2, 8).device_class


def test_an_unknown_device_is_refused_with_what_is_on_offer() -> None:
    with pytest.raises(InputError, match="auto, cpu, cuda, mps"):
        device.choose("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="no usable 'cuda'"):
        device.choose("cuda")
    with pytest.raises(InputError, match="torch cannot use 'cuda'"):
        device.Device("cuda", "imagined", 1, 1).open()


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: str | None = None", False),
        ("cuda: Optional[str] = '12.8'", True),
        ('cuda = "13.0"', True),
        ("cuda = None", False),
    ],
)
def test_the_build_of_torch_is_read_from_its_version_file(
    line: str, cuda: bool, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util
    from importlib.machinery import ModuleSpec
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "version.py").write_text(f"debug = False\n{line}\ncudnn = '9'\n", "utf-8")
    found = ModuleSpec("torch", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    assert device._torch_has_cuda() is cuda
