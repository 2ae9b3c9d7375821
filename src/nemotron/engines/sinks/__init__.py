"""Where metrics go beside the run folder, when ``logger`` asks for it: Weights & Biases, TensorBoard.

``metrics.jsonl`` is the record; a sink is a copy that is brought into line with it whenever a run goes on. The
libraries are imported only when a sink is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nemotron.config.schema.logger import LoggerConfig
from nemotron.runs import metrics as m
from nemotron.runs.folder import RunFolder

PLACE = "set `{}` to a folder you may write to"
"""How a folder is moved that cannot be written, with its key."""


class MetricSink(Protocol):
    """Receives each metrics row once, in order of steps."""

    @property
    def place(self) -> str:
        """Where a person looks at it: a URL or a folder, with the name of the program."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a row of finite numbers. Several rows of one step have different names.

        Raises:
            OutputError: it cannot be written.
        """

    def close(self, *, failed: bool) -> None:
        """Write out everything and let go; ``failed`` says that an error or a signal ended the run."""


def open_sinks(run: RunFolder) -> list[MetricSink]:
    """The sinks that the run's config asks for, holding what ``metrics.jsonl`` holds, ready for what comes next.

    Call it after the rows that the attempt will write again were dropped.

    Raises:
        NotAvailableError: a library is not installed.
        ConfigError: W&B refuses its settings.
        OutputError: a folder cannot be written.
    """
    section = run.job().config.get("logger")
    if not isinstance(section, dict):
        return []
    logger = LoggerConfig.model_validate(section)
    sinks: list[MetricSink] = []
    try:
        if logger.tensorboard_enabled:
            from nemotron.engines.sinks.tensorboard import TensorboardSink

            sinks.append(TensorboardSink.open(run, logger))
        if logger.wandb_enabled:
            from nemotron.engines.sinks.wandb import WandbSink

            sinks.append(WandbSink.open(run, logger))
    except BaseException:
        close_all(sinks, failed=True)
        raise
    return sinks


def close_all(sinks: list[MetricSink], *, failed: bool) -> None:
    """Close every sink, also when closing one of them fails."""
    while sinks:
        try:
            sinks.pop().close(failed=failed)
        except BaseException:
            close_all(sinks, failed=failed)
            raise


def finite(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics row that a chart can show, without its step."""
    found = {name: m.number(value) for name, value in row.items() if name != "step"}
    return {name: value for name, value in found.items() if value is not None}


def recorded(run: RunFolder) -> list[tuple[int, dict[str, float]]]:
    """What the run folder holds: (step, numbers) with one entry a step, in order."""
    return [(int(row["step"]), finite(row)) for row in m.by_step(run.read_metrics())]
