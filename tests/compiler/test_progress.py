from __future__ import annotations

import subprocess
import sys

import pytest

from compiler.progress import Bars, Silent, for_terminal


@pytest.mark.parametrize("progress", [Silent(), Bars()])
def test_tasks_nest_and_advance_both_ways(progress: Silent | Bars) -> None:
    for _ in range(2):
        with progress.task("outer", total=2) as outer, progress.task("inner") as inner:
            outer.advance()
            inner(3)


def test_nothing_is_shown_where_stderr_is_no_terminal() -> None:
    assert isinstance(for_terminal(), Silent)
    script = (
        "from compiler.progress import for_terminal\nwith for_terminal().task('x', 1) as task: task.advance()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
