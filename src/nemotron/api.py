"""The product from Python: compile, run, and pipelines, by the same code that the command line calls.

Example::

    from nemotron import api

    plan = api.compile("dpo", "tiny", {"dpo.max_num_steps": 20})
    run = api.run("dpo", "tiny", {"dpo.max_num_steps": 20})
    run.state, run.heldout, run.artifacts["checkpoint_megatron"]
    [row["train/loss"] for row in run.metrics if "train/loss" in row]

A mistake raises what the command would print: a ``NemotronError`` with ``message``, ``hint`` and ``origin``
(:mod:`nemotron.errors`). Training happens in a process of its own, so a notebook's kernel keeps its memory and threads.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.artifacts.made import all_made
from nemotron.compile.plan import Plan
from nemotron.config.origins import PYTHON, located
from nemotron.config.overrides import Override, parse_overrides
from nemotron.disk.home import expanded
from nemotron.errors import CompileError, ConfigError, NemotronError, Origin, UsageError
from nemotron.executors import apart, goes_on, is_elsewhere, state_of
from nemotron.executors.request import Request
from nemotron.manifest import VARIABLE, declaration, find_step, own_folders
from nemotron.pipelines.chain import Chain
from nemotron.pipelines.drive import work
from nemotron.pipelines.file import find_pipeline
from nemotron.pipelines.start import begin, compile_file, reopen
from nemotron.pipelines.state import PipelineFolder, find
from nemotron.runs.folder import RunFolder, find_run
from nemotron.runs.summary import summarise

Overrides = Mapping[str, Any] | Sequence[str]
"""Dotted keys and values, or words as on the command line: ``["dpo.seed=3", "~policy.scheduler"]``."""
_POLL_S = 0.5


def use_steps(folder: str | Path) -> None:
    """Take the steps of a folder of your own, here and in the runs that are started from here.

    Raises:
        NotFoundError: it is no folder; nothing has changed.
    """
    known = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.pathsep.join(filter(None, [str(expanded(folder).absolute()), known]))
    try:
        own_folders()
    except NemotronError:
        # Every later call looks there, and would be refused for it.
        if known is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = known
        raise


@dataclass(frozen=True)
class Run:
    """A run; everything is read from its folder when it is asked for."""

    folder: RunFolder

    @property
    def id(self) -> str:
        """Its name."""
        return self.folder.id

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder.path

    @property
    def state(self) -> str:
        """``finished``, ``failed``, ``stopped`` ..., as `nemotron runs list` says it."""
        return state_of(self.folder)

    @property
    def error(self) -> str | None:
        """Why it did not end well."""
        return self.folder.status().error

    @property
    def exit_code(self) -> int | None:
        """That of its process; None while it works, or was killed."""
        status = self.folder.status()
        return 0 if status.state == "finished" else status.exit_code

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a step, NeMo-RL's names: what `pandas.DataFrame` takes."""
        return self.folder.read_metrics()

    @property
    def heldout(self) -> dict[str, dict[str, float] | None]:
        """Shares of held-out answers ``before`` and ``after``."""
        status = self.folder.status()
        return {"before": status.heldout_before, "after": status.heldout_after}

    @property
    def artifacts(self) -> dict[str, Path]:
        """Artifact type -> path of what it has made."""
        return dict(all_made(self.folder))

    @property
    def report(self) -> Path | None:
        """Its page, where there is one."""
        return self.folder.report if self.folder.report.is_file() else None

    @property
    def summary(self) -> dict[str, Any]:
        """What `nemotron runs show --json` prints."""
        return summarise(self.folder, state_of(self.folder))


def compile(
    step: str, config: str | Path = "default", overrides: Overrides = (), *, runs_dir: str | Path = "runs"
) -> Plan:
    """What `steps run --dry-run` finds: ``plan.ok``, ``plan.findings``, ``plan.work``, ``plan.to_json()``.

    Args:
        step: a step id, or a unique tail of one.
        config: a config of the step, or the path of a YAML file.

    Raises:
        NemotronError: there is no such step or config, or it cannot be read.
    """
    return _request(step, config, runs_dir).compile(_overrides(overrides))


def run(
    step: str,
    config: str | Path = "default",
    overrides: Overrides = (),
    *,
    runs_dir: str | Path = "runs",
    progress: bool = True,
) -> Run:
    """Compile and run a step to its end, in a process of its own. How it ended says the run's ``state``.

    Raises:
        CompileError: the config has errors; nothing was started.
        NemotronError: of every other kind before the start.
        KeyboardInterrupt: the run has saved its state.
    """
    request = _request(step, config, runs_dir)
    plan = request.compile(_overrides(overrides))
    if not plan.ok:
        raise CompileError(plan.findings)
    plan.require_entry()
    job = plan.job(request.asked(plan))
    folder = RunFolder(Path(runs_dir).resolve() / plan.run_id)
    with _progress(folder, shown=progress):
        apart.start(job, Path(runs_dir), plan.secrets())
    return Run(RunFolder.open(folder.path))


def resume(name: str, *, runs_dir: str | Path = "runs", progress: bool = True) -> Run:
    """Go on with a run where it was started, by its id, ``last`` or ``last:STEP``.

    One that is finished, or goes on, is left alone. One of this process is back when it has ended; one that was
    submitted (`-b`, `-r`) is submitted again and is back at once, ``queued`` or the like: its ``state`` asks how it is.

    Raises:
        NemotronError: of every kind; the run stays as it was, or says that it could not be submitted.
        KeyboardInterrupt: a run of this process has saved its state.
    """
    folder, words = _found(name, runs_dir), ("api", "resume", name)
    if folder.status().state == "finished" or goes_on(folder):
        return Run(folder)
    if is_elsewhere(folder):
        from nemotron.executors.elsewhere import say_submitted
        from nemotron.executors.launch import resume as submit_again

        if submit_again(folder, max_steps=None, command=words) is not None and progress:
            say_submitted(folder)
        return Run(folder)
    from nemotron.engines.worker import secrets_of

    with _progress(folder, shown=progress):
        apart.go_on(folder, secrets_of(folder.job()), words)
    return Run(folder)


def open_run(name: str, *, runs_dir: str | Path = "runs") -> Run:
    """A run that exists, by its id, ``last`` or ``last:STEP``. Raises NotFoundError."""
    return Run(_found(name, runs_dir))


@dataclass(frozen=True)
class Pipeline:
    """A pipeline: a shipped one by its name, or a file of your own by its path."""

    name: str | Path
    overrides: Overrides = ()
    """Keys begin with the name of a node: ``{"rm.rm.seed": 3}``."""
    runs_dir: str | Path = "runs"

    def compile(self) -> Chain:
        """Every node against what its inputs will be: ``chain.nodes``, each with its ``plan``.

        Raises:
            CompileError: what is wrong with any of them.
        """
        return self._compile(rehearsal=True)

    def _compile(self, *, rehearsal: bool) -> Chain:
        overrides = _overrides(self.overrides)
        name, runs_dir = _text("name", self.name), Path(_text("runs_dir", self.runs_dir))
        return compile_file(find_pipeline(name), overrides, runs_dir, rehearsal=rehearsal)

    def run(
        self,
        *,
        force: Sequence[str] = (),
        begin_with: str | None = None,
        until: str | None = None,
        side_by_side: int | None = None,
    ) -> PipelineRun:
        """Run what has not been done. A node that fails stops what depends on it; ``states`` says how each ended.

        Args:
            force: nodes that are done anew.
            begin_with: the node that is done anew with all that depends on it.
            until: the node after which it ends.
            side_by_side: nodes that work at once; one for every two cores, if memory is enough, unless given.

        Raises:
            CompileError, NotFoundError, UsageError: nothing was started.
        """
        chain, overrides = self._compile(rehearsal=False), _overrides(self.overrides)
        folder = begin(
            chain, overrides=overrides, force=force, begin_with=begin_with, until=until, side_by_side=side_by_side
        )
        work(chain, folder, command=("api", "pipelines", "run", os.fspath(self.name)))
        return PipelineRun(folder)


@dataclass(frozen=True)
class PipelineRun:
    """A pipeline that was started."""

    folder: PipelineFolder

    @classmethod
    def open(cls, name: str = "last", *, runs_dir: str | Path = "runs") -> PipelineRun:
        """One that exists, by its id or ``last``. Raises NotFoundError."""
        return cls(find(Path(_text("runs_dir", runs_dir)), _text("name", name)))

    @property
    def states(self) -> dict[str, str]:
        """Node -> how it ended."""
        return {node.name: node.state for node in self.folder.read().nodes}

    @property
    def runs(self) -> dict[str, Run]:
        """Node -> its run, of those that have one."""
        state = self.folder.read()
        paths = {node.name: Path(state.runs_dir) / node.run for node in state.nodes if node.run is not None}
        return {name: Run(RunFolder.open(path)) for name, path in paths.items()}

    @property
    def report(self) -> Path:
        """The page that links the reports of all nodes."""
        return self.folder.report

    def resume(self) -> PipelineRun:
        """Go on where it was cut off. Raises ArtifactError when its file or a config is not what it was."""
        work(reopen(self.folder), self.folder, command=("api", "pipelines", "resume", self.folder.id))
        return self


def _request(step: str, config: str | Path, runs_dir: str | Path) -> Request:
    found, config = find_step(_text("step", step)), _text("config", config)
    words = ("api", "run", found.id, "-c", config)
    return Request(found, declaration(found), config, None, Path(_text("runs_dir", runs_dir)), words, (), False)


def _found(name: str, runs_dir: str | Path) -> RunFolder:
    return find_run(Path(_text("runs_dir", runs_dir)), _text("name", name))


def _text(name: str, value: object) -> str:
    """A name or path as text. Raises UsageError: it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike) and isinstance(text := os.fspath(value), str):
        return text
    message = f"`{name}` should be a text or a path, not {value!r}"
    raise UsageError(message, hint=f"leave `{name}` out for its default, if it has one", origin=Origin(PYTHON))


def _overrides(overrides: Overrides) -> list[Override]:
    if not isinstance(overrides, Mapping):
        # A text is a sequence, too: of its letters.
        words = None if isinstance(overrides, str | bytes) or not isinstance(overrides, Iterable) else list(overrides)
        if words is None or not all(isinstance(word, str) for word in words):
            message = f"overrides should be a mapping or a list of words, not {overrides!r}"
            hint = 'pass `{"dpo.seed": 3}` or `["dpo.seed=3"]`, and leave them out for none'
            raise UsageError(message, hint=hint, origin=Origin(PYTHON))
        return parse_overrides(list(enumerate(words, 1)), PYTHON)
    origin = Origin(PYTHON)
    plain = {key: _plain(str(key), value) for key, value in overrides.items()}
    return [
        Override("set", tuple(str(key).split(".")), located(value, origin), origin, f"{key}={json.dumps(value)}")
        for key, value in plain.items()
    ]


def _plain(key: str, value: Any) -> Any:
    """A value as YAML has it: paths become texts, numbers of numpy and the like those of Python.

    Raises:
        ConfigError: no config can hold it.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{key}.{number}", inner) for number, inner in enumerate(value)]
    # A number of numpy or a tensor of one element; nothing of them is imported here.
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        value = item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    message = f"`{key}` cannot be set to a {type(value).__name__}: a config holds texts, numbers, lists and mappings"
    raise ConfigError(message, hint="give one of these", origin=Origin(PYTHON))


@contextmanager
def _progress(folder: RunFolder, *, shown: bool) -> Iterator[None]:
    """Say in this process what the run does: what it prints itself goes to the terminal, which a notebook has not."""
    ended = threading.Event()

    def watch() -> None:
        said = ""
        while not ended.wait(_POLL_S):
            if not (folder.path / "status.json").is_file():
                continue
            status = folder.status()
            steps = f"step {status.steps_done}/{status.steps_total}" if status.steps_total else ""
            now = ", ".join(filter(None, (status.phase or status.state, steps)))
            if now != said:
                print(f"{folder.id}: {now}", flush=True)
                said = now

    watcher = threading.Thread(target=watch, daemon=True, name="progress")
    if shown:
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if shown:
            watcher.join()
            if (folder.path / "status.json").is_file():
                print(f"{folder.id}: {folder.status().state}", flush=True)
