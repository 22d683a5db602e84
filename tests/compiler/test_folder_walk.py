from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from compiler.folder_walk import by_name, defined_in


class Plug(ABC):
    """What the files of the test define."""

    @abstractmethod
    def __call__(self) -> int: ...


SHARED = "from test_folder_walk_kind import Plug\n"
ONE = """
class One(Plug):
    def __call__(self):
        return 1

class _Shared(Plug):
    def __call__(self):
        return 0

class Unfinished(Plug):
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys
    from types import ModuleType

    kind = ModuleType("test_folder_walk_kind")
    kind.Plug = Plug  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_folder_walk_kind", kind)
    folder = tmp_path / f"plugs_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_file_gives_its_own_concrete_classes_and_none_that_it_imports_or_hides(package: Path) -> None:
    (package / "b.py").write_text(SHARED + ONE)
    (package / "a.py").write_text(f"from {package.name}.b import One\n")
    (package / "_common.py").write_text("raise RuntimeError\n")
    found = dict(defined_in(package.name, [str(package)], Plug))  # type: ignore[type-abstract]
    assert list(found) == [f"{package.name}.a", f"{package.name}.b"]
    assert found[f"{package.name}.a"] == []
    assert [one.__name__ for one in found[f"{package.name}.b"]] == ["One"]


def test_a_file_that_cannot_be_imported_breaks_the_program(package: Path) -> None:
    (package / "broken.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(ModuleNotFoundError):
        list(defined_in(package.name, [str(package)], Plug))  # type: ignore[type-abstract]


def test_a_name_is_given_once() -> None:
    assert by_name([("a", 1), ("b", 2)], "gates") == {"a": 1, "b": 2}
    with pytest.raises(TypeError, match="two gates are called 'a'"):
        by_name([("a", 1), ("a", 2)], "gates")
