"""How far an audit is: a bar on a terminal, a line per tenth elsewhere. On stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class PairsBar:
    """Counts audited pairs.

    Example::

        with PairsBar(total=200, done=40) as bar:
            bar.advance(1)
    """

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        """``done``: pairs of an earlier attempt."""
        self._console = console or Console(stderr=True, highlight=False)
        self._total, self._done = total, done
        columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bars.add_task("pairs", total=total, completed=done)

    def __enter__(self) -> Self:
        self._bars.start()
        if self._done and not self._console.is_terminal:
            self._console.print(f"{self._done} of {self._total} pairs were done before", soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Say something that stays on the screen. For any thread."""
        self._console.print(text, markup=False, soft_wrap=True)

    def advance(self, pairs: int) -> None:
        """Some more pairs are done."""
        before, self._done = self._done, self._done + pairs
        self._bars.advance(self._task, pairs)
        tenth = max(self._total // 10, 1)
        if not self._console.is_terminal and (before // tenth != self._done // tenth or self._done == self._total):
            self._console.print(f"{self._done} of {self._total} pairs", soft_wrap=True)
