"""What a user sees while a run works: a progress bar with ETA and a table of the last steps, on stderr.

On a terminal the view redraws in place; elsewhere (a log file, CI) it is one plain line per step, thinned out when
steps are fast.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nemotron.runs import metrics as m
from nemotron.runs.views import JUDGED_GRPO, LiveColumn, View
from nemotron.runs.words import duration

_TABLE_ROWS = 8
_PLAIN_INTERVAL_S = 1.0
# Drawing costs CPU that a laptop run needs for itself.
_REDRAWS_PER_S = 4
# The ETA goes by the steps of the last hour: a cluster's step may take minutes.
_PACE_PERIOD_S = 3600.0


class LiveView:
    """Progress of one run.

    Example::

        with LiveView(40) as view:
            view.phase("loading policy")
            for step in range(1, 41):
                view.step({"step": step, "train/reward": 0.5, ...})
    """

    def __init__(
        self, total_steps: int, console: Console | None = None, *, start_step: int = 0, view: View = JUDGED_GRPO
    ) -> None:
        """``start_step`` is the number of steps already done when a run is resumed; the ETA leaves them out."""
        self.console = console or Console(stderr=True, highlight=False)
        self._columns = view.columns
        self._total = total_steps
        self._first = start_step
        self._began = time.monotonic()
        self._rows: deque[tuple[str, ...]] = deque(maxlen=_TABLE_ROWS)
        self._last_line = float("-inf")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
            speed_estimate_period=_PACE_PERIOD_S,
        )
        self._task = self._progress.add_task("starting", total=total_steps, completed=start_step)
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        if self.console.is_terminal:
            # stdout stays free: it carries data only, and may be a pipe.
            self._live = Live(
                self._drawing(), console=self.console, refresh_per_second=_REDRAWS_PER_S, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._drawing(), refresh=True)
            self._live.stop()
            self._live = None

    def phase(self, text: str) -> None:
        """Say what the run does now, e.g. ``loading policy``, ``starting judge``, ``held-out before``, ``training``."""
        self._progress.update(self._task, description=text)
        if self._live is None:
            self._line(text)

    def note(self, text: str) -> None:
        """Say something that stays on the screen."""
        if self._live is None:
            self._line(text)
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show the metrics row of a step that is done (names as in ``metrics.jsonl``)."""
        step = int(metrics["step"])
        self._progress.update(self._task, completed=step)
        cells = [_cell(column, metrics) for column in self._columns]
        self._rows.append((str(step), *cells))
        if self._live is not None:
            self._live.update(self._drawing())
            return
        now = time.monotonic()
        named = list(zip(self._columns, cells, strict=True))
        rare = any(cell and column.rare for column, cell in named)
        if step >= self._total or step == self._first + 1 or rare or now - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = now
            words = [f"{column.title} {cell}" for column, cell in named if cell]
            eta = self._progress.tasks[0].time_remaining
            ending = [f"ETA {duration(eta)}"] if eta else []
            self._line(", ".join([f"step {step}/{self._total}", *words, *ending]))

    def _line(self, text: str) -> None:
        self.console.print(f"[{time.monotonic() - self._began:7.1f} s] {text}", markup=False, soft_wrap=True)

    def _drawing(self) -> Group:
        table = Table(box=None, expand=True, header_style="dim", padding=(0, 1))
        for name in ("step", *(column.title for column in self._columns)):
            table.add_column(name, justify="right", no_wrap=True)
        for cells in self._rows:
            table.add_row(*cells)
        return Group(table, self._progress) if self._rows else Group(self._progress)


def _cell(column: LiveColumn, metrics: Mapping[str, Any]) -> str:
    """What stands in a column; empty where the step has no such metric."""
    name = next(iter(m.matching([dict(metrics)], column.metric)), column.metric)
    value = m.number(metrics.get(name))
    if value is None:
        return ""
    if column.share:
        return f"{100 * value:.1f}%"
    spread = m.number(metrics.get(column.spread)) if column.spread else None
    return format(value, column.form) + ("" if spread is None else f" ± {format(spread, column.form)}")
