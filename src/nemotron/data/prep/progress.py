"""The progress bar of the preparation, on stderr; without a thread, because processes are forked beside it."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_REDRAW_S = 0.2
_PLAIN_S = 5.0


class ProgressBar:
    """Rows, rows per second and share of bytes done; a plain line every few seconds where stderr is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=self.console,
            auto_refresh=False,
            redirect_stdout=False,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._began = self._drawn = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, stage: str, rows: int, size: int, total: int) -> None:
        """Show how far a stage is; ``total`` is 0 where it is not known."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, now
            if self._task is not None:
                self._bar.update(self._task, visible=False)
            self._task = self._bar.add_task(stage, total=total or None, detail="")
        elif now - self._drawn < (_REDRAW_S if self.console.is_terminal else _PLAIN_S):
            return
        self._drawn = now
        spent = now - self._began
        detail = f"{rows:,} rows" + (f", {rows / spent:,.0f} rows/s" if rows and spent > 0 else "")
        if self.console.is_terminal:
            assert self._task is not None
            self._bar.update(self._task, completed=size, detail=detail)
            self._bar.refresh()
        elif rows:
            done = f" ({size / total:.0%})" if total else ""
            self.console.print(f"{stage}: {detail}{done}", markup=False, soft_wrap=True)
