"""The command line: walks a folder for commands, imports the one that runs, turns errors into exit codes.

0 done, 1 internal fault, 2 bad input, 3 a gate failed or a verification refused. Results go to stdout, all
else to stderr; with `--json` an error too is one JSON object on stdout.
"""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from excise.shadows import ShadowedError, refuse_shadows

DONE, INTERNAL_FAULT, BAD_INPUT, REFUSED = 0, 1, 2, 3
_INTERRUPTED = 130  # as shells count: 128 + SIGINT

_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "the file name is too long",
}


class Commands(click.Group):
    """Commands by file: `excise/commands/NAME.py` holds the one click command called NAME."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules([str(_folder())]))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"excise.commands.{cmd_name.replace('-', '_')}")
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, click.Command) and value.name == cmd_name
        ]
        if len(found) != 1:
            raise TypeError(
                f"{module.__name__} must hold exactly one click command called {cmd_name!r}, not {len(found)}"
            )
        return found[0]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from editspec.errors import did_you_mean, quoted

        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            raise click.UsageError(
                f"no command called {quoted(name)}; {did_you_mean(name, known, 'the commands')}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from their files' first sentences: nothing is imported to show it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _purpose(name)) for name in self.list_commands(ctx)])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an internal fault.")
@click.version_option(package_name="excise", message="excise %(version)s")
def cli(debug: bool) -> None:
    """A model-editing compiler: a JSON edit spec in, a hardened diffusers checkpoint with proof out."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(list(sys.argv[1:] if args is None else args)))


def run(args: list[str]) -> int:
    """Run the command line; the exit code."""
    as_json = "--json" in args
    try:
        refuse_shadows()
        code = cli.main(args, prog_name="excise", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) and not isinstance(code, bool) else DONE
    except ShadowedError as error:
        return _report(INTERNAL_FAULT, {"message": str(error)}, f"error: {error}", as_json)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo(
            "\ninterrupted; run the same command again to go on from the last finished stage", err=True
        )
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader is gone; do not fail again at exit
        return DONE
    except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a message and an exit code
        return _failed(error, as_json, debug="--debug" in args or bool(os.environ.get("EXCISE_DEBUG")))


def _failed(error: Exception, as_json: bool, debug: bool) -> int:
    from editspec.errors import GateFailed, InputError, SpecErrors

    if isinstance(error, SpecErrors):
        return _report(BAD_INPUT, error.as_dict(), error.render(), as_json)
    if isinstance(error, InputError):
        return _report(BAD_INPUT, error.as_dict(), f"error: {error}", as_json)
    if isinstance(error, GateFailed):
        return _report(REFUSED, {"message": str(error)}, f"refused: {error}", as_json)
    if isinstance(error, click.ClickException):
        if as_json:
            return _report(error.exit_code, {"message": error.format_message()}, "", as_json)
        error.show()
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{_DISK[error.errno]}"
        return _report(BAD_INPUT, {"message": message}, f"error: {message}", as_json)
    return _fault(error, as_json, debug)


def _fault(error: Exception, as_json: bool, debug: bool) -> int:
    """A fault of ours: one line for the user, the traceback for whoever mends it."""
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
    text = "".join(traceback.format_exception(error))
    if debug:
        click.echo(text, err=True)
        remedy = "this is a fault of Excise, not of your input; please report it with the traceback above"
    else:
        remedy = f"this is a fault of Excise, not of your input; please report it with {_saved(text)}"
    return _report(
        INTERNAL_FAULT,
        {"message": what, "remedy": remedy},
        f"internal fault: {what}\n  help: {remedy}",
        as_json,
    )


def _saved(text: str) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="excise-fault-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError:
        return "the output of the same command with --debug before its name"
    return f"the traceback in {file.name}"


def _report(code: int, error: dict[str, Any], text: str, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"ok": False, "exit": code, "error": error}, indent=2, ensure_ascii=False))
    else:
        click.echo(text, err=True)
    return code


def _folder() -> Path:
    return Path(__file__).parent / "commands"


def _purpose(name: str) -> str:
    """What a command's file says it is for, after the command itself."""
    source = (_folder() / f"{name.replace('-', '_')}.py").read_text("utf-8")
    first = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].replace("\n", " ")
    return first.partition(": ")[2].rstrip(".") or first
