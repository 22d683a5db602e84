from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import excise
from editspec import GateFailed, InputError
from excise import cli
from excise.cli import run
from excise.shadows import PACKAGES, ShadowedError, refuse_shadows

GOOD: dict[str, Any] = {
    "editspec": 1,
    "name": "good",
    "base": {"path": "miniature"},
    "edits": [{"edit": "erase", "concept": "star"}],
    "gates": [{"gate": "erased", "concept": "star"}],
}


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(GOOD))
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.json"
    path.write_text(
        '{\n  "editspec": 1,\n  "nmae": "bad",\n  "base": {"path": "x"},\n  "edits": [{"edit": "erse"}]\n}'
    )
    return str(path)


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make `excise check` do something else."""

    def install(act: Callable[[], object]) -> None:
        command = click.Command(
            "check",
            callback=lambda as_json: act(),
            params=[click.Option(["--json", "as_json"], is_flag=True)],
        )
        monkeypatch.setattr(cli.Commands, "get_command", lambda self, ctx, name: command)

    return install


def raises(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


def test_a_good_spec_is_done_and_says_its_digest(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", good]) == 0
    out = capsys.readouterr().out
    assert "ok, 1 edit, 1 gate, sha256 " in out


def test_a_good_spec_as_data(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", good, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["ok"]
    assert outcome["edits"] == [{"id": "erase-star", "edit": "erase", "method": "esd"}]
    assert outcome["gates"] == [{"id": "erased-star", "gate": "erased"}]


def test_the_canonical_form_is_a_spec_with_the_same_digest(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", good, "--canonical"]) == 0
    again = tmp_path / "again.json"
    again.write_text(capsys.readouterr().out)
    assert excise.load_spec(again).digest == excise.load_spec(good).digest


def test_a_bad_spec_shows_every_error_on_stderr_and_exits_with_2(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", bad]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{bad}:3:3: error: unknown key 'nmae'" in shown.err
    assert "did you mean 'name'?" in shown.err
    assert f"{bad}:5:22: error: no kind of edit called 'erse'" in shown.err
    assert "Traceback" not in shown.err


def test_a_bad_spec_as_data_names_line_column_and_pointer(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", bad, "--json"]) == 2
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["ok"], outcome["exit"]) == (False, 2)
    places = [(d["line"], d["column"], d["pointer"]) for d in outcome["error"]["diagnostics"]]
    assert places[0] == (3, 3, "/nmae")
    assert (5, 22, "/edits/0/edit") in places


def test_the_schema_is_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == excise.schema()


def test_a_misspelt_command_is_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chekc"]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_a_misspelt_option_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "--jsno"]) == 2
    assert "--json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            InputError("base", "no model_index.json", "give a diffusers folder"),
            2,
            "help: give a diffusers folder",
        ),
        (GateFailed("gate 'erased-star' failed"), 3, "refused: gate 'erased-star' failed"),
        (OSError(28, "No space left on device", "out/unet.safetensors"), 2, "the disk is full"),
        (PermissionError(13, "Permission denied", "out"), 2, "out: permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_decides_the_exit_code(
    error: BaseException,
    code: int,
    says: str,
    command_that: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command_that(raises(error))
    assert run(["check"]) == code
    assert says in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_and_a_saved_traceback(
    command_that: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command_that(raises(ZeroDivisionError("by zero")))
    assert run(["check"]) == 1
    shown = capsys.readouterr().err
    assert "internal fault: ZeroDivisionError: by zero" in shown
    assert "Traceback" not in shown
    saved = next(tmp_path.glob("excise-fault-*.txt"))
    assert str(saved) in shown
    assert "Traceback" in saved.read_text()


def test_debug_shows_the_traceback(
    command_that: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(raises(ZeroDivisionError("by zero")))
    assert run(["--debug", "check"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_with_json_even_a_fault_is_one_object_on_stdout(
    command_that: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command_that(raises(ZeroDivisionError("by zero")))
    assert run(["check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "ZeroDivisionError: by zero"


def test_what_a_command_returns_is_not_its_exit_code_unless_it_says_so(
    command_that: Callable[[Callable[[], object]], None],
) -> None:
    command_that(lambda: {"an": "artifact"})
    assert run(["check"]) == 0
    command_that(lambda: click.get_current_context().exit(3))
    assert run(["check"]) == 3


def test_help_lists_every_command_without_importing_one() -> None:
    code = (
        "import sys\nfrom excise.cli import run\nassert run(['--help']) == 0\n"
        "assert not [m for m in sys.modules if m.startswith('excise.commands')]"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for path in Path(cli.__file__).parent.joinpath("commands").glob("[!_]*.py"):
        assert path.stem.replace("_", "-") in shown.stdout


@pytest.mark.parametrize(
    "path", sorted(Path(cli.__file__).parent.joinpath("commands").glob("[!_]*.py")), ids=lambda p: p.stem
)
def test_every_command_file_says_what_its_command_is_for(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    assert first.startswith(f"`excise {path.stem.replace('_', '-')}`: ")
    context = click.Context(cli.cli)
    name = path.stem.replace("_", "-")
    command = cli.cli.get_command(context, name)
    assert command is not None
    leaves = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        assert any("--json" in option.opts for option in leaf.params), "every command speaks JSON"


def test_checking_a_spec_loads_nothing_heavy(good: str) -> None:
    code = (
        "import sys\nfrom excise.cli import run\n"
        f"assert run(['check', {good!r}]) == 0\n"
        "heavy = {'torch', 'numpy', 'scipy', 'diffusers', 'transformers', 'rich', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_front_door_offers_every_name_it_lists() -> None:
    assert excise.__version__
    for name in excise.__all__:
        assert getattr(excise, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compile_spce'"):
        excise.compile_spce  # noqa: B018


def test_our_packages_are_ours() -> None:
    refuse_shadows()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_shadows_ours_is_named(name: str, tmp_path: Path) -> None:
    culprit = tmp_path / name
    culprit.mkdir()
    (culprit / "__init__.py").write_text("")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import excise\n"
        "try:\n    excise.load_spec\nexcept ImportError as error:\n    print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"package '{name}' is found at {culprit}" in shown
    assert "rename" in shown


def test_a_shadowed_package_ends_the_command_line_with_the_culprit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        cli, "refuse_shadows", raises(ShadowedError("package 'compiler' is found at /elsewhere"))
    )
    assert run(["schema"]) == 1
    assert "/elsewhere" in capsys.readouterr().err
