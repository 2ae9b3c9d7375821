"""What an engine is: whatever does the work of a compiled job. The worker hands it an attempt."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from nemotron.errors import ConfigError
from nemotron.job import CompiledJob, Input
from nemotron.manifest import EngineName
from nemotron.own_code import raised_by_own_code
from nemotron.processes import garbage
from nemotron.runs.attempts import AttemptFolder
from nemotron.runs.folder import RunFolder

if TYPE_CHECKING:
    from pydantic import BaseModel

    from nemotron.artifacts.inputs import Hashing

C = TypeVar("C", bound="BaseModel")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, as the worker hands it to an engine."""

    run: RunFolder
    job: CompiledJob
    folder: AttemptFolder
    secrets: Mapping[str, str]
    """Values that are never written, by config key."""
    hashing: Hashing
    """Reads the inputs beside the work."""
    closing: ExitStack = field(default_factory=ExitStack)
    """Closed by the worker when the attempt ends, however it ends."""

    @property
    def logs(self) -> Path:
        """The folder for the logs of helper processes."""
        return self.folder.logs

    def settings(self, model: type[C]) -> C:
        """The config as the step's own type. Raises ArtifactError when it is not of that type."""
        return self.job.settings(model)

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs with their hashes; waits until they are known.

        Raises:
            ArtifactError: an input cannot be read.
        """
        return self.hashing.wait()


class Engine(Protocol):
    """Does the work of a job."""

    name: EngineName

    def run(self, entry: str, attempt: Attempt) -> None:
        """Do the job from where it stands to its end, in this process.

        Args:
            entry: what the step declares for this engine in its ``step.py``.
            attempt: the attempt, whose run this process holds.

        Raises:
            NemotronError: of every kind; what was finished before stays in the run folder.
        """


class InProcess:
    """Calls a function of ours: the entry is ``module:function``, which takes the attempt.

    That of the embedded engine says itself when all is loaded that stays (see ``nemotron.processes.garbage``).
    """

    def __init__(self, name: EngineName) -> None:
        self.name: EngineName = name

    def run(self, entry: str, attempt: Attempt) -> None:
        """Import the module and call the function.

        Raises:
            ConfigError: there is none of that name, which a step of one's own can get wrong.
        """
        module, _, function = entry.partition(":")
        try:
            found = getattr(import_module(module), function)
        except (ModuleNotFoundError, AttributeError) as error:
            if (isinstance(error, ModuleNotFoundError) and error.name != module) or raised_by_own_code(error):
                raise
            message = (
                f"`{attempt.job.step}` runs `{function}` of its module `{module.partition('.')[2]}`, which is not there"
            )
            raise ConfigError(message, hint="see `STEP` in its `step.py`") from error
        if self.name != "embedded":
            garbage.started()
        found(attempt)


NAMES: tuple[EngineName, ...] = ("plain", "embedded", "nemo_rl")
ENGINES: Mapping[EngineName, Engine] = {name: InProcess(name) for name in NAMES}
"""Engines of this version. NeMo-RL's own process is started and watched from here: its entry is a function, too."""
