"""TensorBoard event files.

An attempt that goes on after step N tells TensorBoard to forget what lies behind it (``purge_step``), then writes those
steps anew: every reader of event files, TensorBoard itself included, shows each step once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.config.dump import dump_yaml
from nemotron.config.schema.logger import LoggerConfig
from nemotron.disk.faults import output_errors
from nemotron.disk.home import expanded
from nemotron.engines.sinks import PLACE, recorded
from nemotron.errors import NotAvailableError
from nemotron.install import install_extra
from nemotron.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorboardSink:
    """Scalars under the names of ``metrics.jsonl``, and the config as text."""

    def __init__(self, writer: SummaryWriter, folder: Path, place: str) -> None:
        """Use :meth:`open`."""
        self._writer = writer
        self._folder = folder
        self._place = place
        self._newest: tuple[int, set[str]] = (-1, set())

    @classmethod
    def open(cls, run: RunFolder, logger: LoggerConfig) -> TensorboardSink:
        """Start an event file in ``logger.tensorboard.log_dir``, or in ``tensorboard`` below ``logger.log_dir``."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise NotAvailableError(
                f"`logger.tensorboard_enabled` needs the package `{error.name}`",
                hint=install_extra("tensorboard"),
            ) from error
        own = logger.tensorboard.log_dir if logger.tensorboard else None
        folder = expanded(own or Path(logger.log_dir) / "tensorboard")
        rows = recorded(run)
        goes_on = any(folder.glob("events.out.tfevents.*"))
        # The last step kept is written again too: a later evaluation of it may be missing in the files.
        first = rows[-1][0] if rows else 0
        place = PLACE.format("logger.tensorboard.log_dir" if own else "logger.log_dir")
        with output_errors(folder, place=place):
            writer = SummaryWriter(str(folder), purge_step=first if goes_on else None)
            sink = cls(writer, folder, place)
            if not goes_on:
                writer.add_text("config", f"```yaml\n{dump_yaml(run.job().config)}\n```", 0)
            for step, metrics in rows if not goes_on else rows[-1:]:
                sink.log(step, metrics)
        return sink

    @property
    def place(self) -> str:
        """The folder to point ``tensorboard --logdir`` at."""
        return f"TensorBoard: {self._folder}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the row through to the file: a killed process loses nothing that came before."""
        with output_errors(self._folder, place=self._place):
            if self._newest[0] != step:
                self._newest = (step, set())
            for name in metrics.keys() - self._newest[1]:
                self._writer.add_scalar(name, metrics[name], step)
            self._newest[1].update(metrics)
            self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """End the file."""
        with output_errors(self._folder, place=self._place):
            self._writer.close()
