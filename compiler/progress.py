"""How stages say how far they are: bars with the time left on a terminal, silence everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars


class Task(Protocol):
    """One running piece of work; `task.advance(n)` and `task(n)` are the same."""

    def advance(self, n: float = 1) -> None: ...

    def __call__(self, n: float = 1) -> None: ...


class Progress(Protocol):
    """`with progress.task("distil no-flame", total=200) as task: task.advance()`."""

    def task(self, name: str, total: float | None = None) -> AbstractContextManager[Task]: ...


class Silent:
    """Says nothing."""

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        yield _Counter()


class Bars:
    """Bars on stderr, one for each running task, removed when it ends."""

    def __init__(self) -> None:
        self._bars: RichBars | None = None
        self._running = 0

    @contextlib.contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Task]:
        bars = self._start()
        row = bars.add_task(name, total=total)
        try:
            yield _Counter(lambda n: bars.advance(row, n))
        finally:
            bars.remove_task(row)
            self._running -= 1
            if not self._running:
                bars.stop()
                self._bars = None

    def _start(self) -> RichBars:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
        self._running += 1
        return self._bars


def for_terminal() -> Progress:
    """Bars where stderr is a terminal, else silence (logs and pipes stay clean)."""
    return Bars() if sys.stderr.isatty() else Silent()


class _Counter:
    def __init__(self, report: _Report | None = None) -> None:
        self._report = report

    def advance(self, n: float = 1) -> None:
        if self._report is not None:
            self._report(n)

    def __call__(self, n: float = 1) -> None:
        self.advance(n)


class _Report(Protocol):
    def __call__(self, n: float, /) -> None: ...
