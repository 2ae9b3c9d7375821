"""Weights & Biases, online or offline.

The id of the W&B run is kept in ``wandb.json`` of the run folder, so every attempt adds to the same run. What W&B has
already is found out, not remembered: a killed process loses what its library had not written yet.

- Online, the server says how far its history reaches. Rows that it lacks are sent from ``metrics.jsonl``, rows that it
  has are not sent again, so that history never repeats or runs backwards.
- Offline, an attempt starts a new file with everything from ``metrics.jsonl`` in it and removes the file of the attempt
  before: one complete file for ``wandb sync``, whichever way the last attempt ended.

The config goes along as ``job.json`` has it, without secrets. W&B is told not to collect command line, output, code or
git remote, any of which may hold a secret.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.config.schema.logger import LoggerConfig
from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import read_json
from nemotron.disk.faults import output_errors
from nemotron.disk.home import expanded
from nemotron.engines.sinks import PLACE, recorded
from nemotron.errors import ConfigError, NotAvailableError, OutputError
from nemotron.install import install_extra
from nemotron.runs.folder import RunFolder
from nemotron.runs.jsonl import to_json

if TYPE_CHECKING:
    from wandb import Run

_PLACE = PLACE.format("logger.log_dir")
_STATE = "wandb.json"
_OURS = ("config", "resume", "settings")
"""Arguments of ``wandb.init`` that are not the user's to set."""


class WandbSink:
    """Rows as history under their training step; a figure that comes late for its step goes to the run's summary."""

    def __init__(self, run: Run, folder: Path, known: int) -> None:
        """``known``: the last step that W&B has; use :meth:`open`."""
        self._run = run
        self._folder = folder
        self._known = known

    @classmethod
    def open(cls, run: RunFolder, logger: LoggerConfig) -> WandbSink:
        """Start or go on with the W&B run. Without a connection the attempt is logged offline.

        Raises:
            NotAvailableError: the library is not installed.
            ConfigError: W&B refuses the settings, or nobody is logged in.
        """
        # The library reports its own crashes over the network otherwise.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise NotAvailableError(
                f"`logger.wandb_enabled` needs the package `{error.name}`", hint=install_extra("wandb")
            ) from error
        state = _read_state(run)
        folder = expanded(logger.log_dir)
        with output_errors(folder, place=_PLACE):
            folder.mkdir(parents=True, exist_ok=True)
        asked = {name: value for name, value in logger.wandb.model_dump().items() if value is not None}
        arguments = {
            "dir": str(folder),
            "id": state.get("id") or secrets.token_hex(4),
            **{name: value for name, value in asked.items() if name not in _OURS},
        }
        write_atomic(run.path / _STATE, to_json({**state, "id": arguments["id"]}))
        with _replaced(state, str(arguments["id"])):
            try:
                started = _init(wandb, run, arguments)
            except (wandb.Error, TypeError, ValueError) as error:
                raise ConfigError(
                    f"W&B refuses to start: {str(error).splitlines()[0]}",
                    hint="`wandb login` or WANDB_API_KEY logs in, `WANDB_MODE=offline` needs neither; `logger.wandb` "
                    "takes arguments of `wandb.init`",
                ) from error
            offline = started.settings.mode == "offline"
            sink = cls(started, folder, -1 if offline else started.starting_step - 1)
            for step, metrics in recorded(run):
                sink.log(step, metrics)
        more = {"offline": started.settings.sync_dir} if offline else {}
        write_atomic(run.path / _STATE, to_json({"id": started.id, **more}))
        return sink

    @property
    def place(self) -> str:
        """The page of the run, or the folder for ``wandb sync``."""
        if self._run.settings.mode == "offline":
            return f"W&B offline, to be sent with `wandb sync {self._run.settings.sync_dir}`"
        return f"W&B: {self._run.url}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row; W&B sends it when it can."""
        if step > self._known:
            self._run.log(dict(metrics), step=step)
        elif step == self._known:
            self._run.summary.update(dict(metrics))

    def close(self, *, failed: bool) -> None:
        """Write out what is pending."""
        offline = self._run.settings.mode == "offline"
        self._run.finish(exit_code=1 if failed else 0)
        if offline:
            import wandb

            # The file is whole only when the library's own process has ended.
            wandb.teardown()


def _init(wandb: Any, run: RunFolder, arguments: Mapping[str, Any]) -> Run:
    """``wandb.init``; offline when the server cannot be reached."""
    known = wandb.Settings.model_fields
    quiet = {
        "console": "off",
        "disable_git": True,
        "save_code": False,
        "silent": True,
        "x_disable_meta": True,
        # Without a network the end of a run would wait for it without end.
        "finish_timeout": 120.0,
    }
    settings = {name: value for name, value in quiet.items() if name in known}

    def init(**more: Any) -> Run:
        started: Run = wandb.init(config=run.job().config, settings=wandb.Settings(**settings), **{**arguments, **more})
        return started

    try:
        return init(resume="allow")
    except wandb.errors.CommError:
        # A run is worth more than its charts. The library must forget the failed attempt before the id is free again.
        wandb.teardown()
        return init(mode="offline")


def _read_state(run: RunFolder) -> dict[str, Any]:
    path = run.path / _STATE
    if not path.exists():
        return {}
    try:
        state = read_json(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"`{path}` cannot be read: {error}", hint="delete it; W&B then gets a new run") from error
    return state if isinstance(state, dict) else {}


@contextmanager
def _replaced(state: Mapping[str, Any], run_id: str) -> Iterator[None]:
    """Delete the offline file of the attempt before once the block has repeated it; put it back when that fails.

    It is out of the way meanwhile: W&B names its folders by the second.
    """
    earlier = Path(str(state.get("offline") or ""))
    # Only what W&B named itself for this very run.
    if not (earlier.name.startswith("offline-run-") and earlier.name.endswith(f"-{run_id}") and earlier.is_dir()):
        yield
        return
    aside = earlier.with_name(f"replaced-{earlier.name}")
    with output_errors(earlier, place=_PLACE):
        earlier.rename(aside)
    try:
        yield
    except BaseException:
        with output_errors(earlier, place=_PLACE):
            aside.rename(earlier)
        raise
    shutil.rmtree(aside, ignore_errors=True)
