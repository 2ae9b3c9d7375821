"""What the preflight knows of any job, whatever its step does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel

from nemotron.compile.plan import FileRef, GpuMemory, Memory, Process, Work
from nemotron.compile.probes.survey import RowKind
from nemotron.config.layers import Resolved
from nemotron.config.schema.judge import GenrmCompareConfig, GenrmModelConfig, JudgeConfig
from nemotron.errors import ArtifactError, ConfigError, Finding, NemotronError, Origin, Severity
from nemotron.judge.form import Form, choose, seen_template
from nemotron.judge.serving import Serving, choose_server
from nemotron.manifest import EngineName
from nemotron.place import Place
from nemotron.promises import Promise

if TYPE_CHECKING:
    from nemotron.compile.plan import Surroundings

M = TypeVar("M", bound=BaseModel, covariant=True)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that a run loads."""

    role: str
    """``policy``, ``judge``, ``reward model`` ..."""
    key: str
    """The config key that names it."""
    name: str
    """Folder or hub name."""
    own_tokenizer: bool = True
    """Whether its folder has to hold a tokenizer."""
    downloaded: bool = True
    """Whether a name of the hub is fetched when the run starts; else it has to be here."""
    template_hint: str | None = None
    """Of a model that is asked through its own chat template: what to do where there is none."""


@dataclass(frozen=True, slots=True)
class NumberType:
    """A model that computes, and the key that says in which number type."""

    key: str
    name: str
    """``float32``, ``bfloat16`` ..."""


@dataclass(frozen=True)
class StepJob(Generic[M]):
    """A typed config on a chosen engine and place: rules ask it, and it makes their findings."""

    config: M
    resolved: Resolved
    engine: EngineName
    engine_reason: str
    place: Place
    engines: Collection[EngineName]
    """Engines that the step has an entry for."""
    runs_dir: Path
    env: Mapping[str, str]
    """Environment variables of the command."""
    resume: bool = False
    """Whether a run that exists would go on."""

    row_kind: ClassVar[RowKind] = "prompt"
    """What the rows of training and validation are."""
    who: ClassVar[str] = "this step"
    """Who does the work in this process, for people."""

    @property
    def section(self) -> str:
        """The key of the algorithm's section; empty without an algorithm."""
        return ""

    @property
    def modules(self) -> tuple[str, ...]:
        """The libraries that do the work in this process."""
        return ()

    @property
    def judge_model(self) -> GenrmModelConfig | None:
        """The judge that is asked, where one is."""
        return None

    @property
    def comparison(self) -> GenrmCompareConfig | None:
        """How its verdicts become rewards."""
        return None

    @property
    def judge_settings(self) -> JudgeConfig | None:
        """How it is asked and served."""
        return None

    @cached_property
    def judge_form(self) -> Form | None:
        """In which words it is asked and how it answers; None without a judge."""
        model, settings = self.judge_model, self.judge_settings
        if model is None or settings is None:
            return None
        if self.gym_asks_the_judge:
            return Form(why_prompt="NeMo-Gym asks so", why_verdict="NeMo-Gym reads no other")
        return choose(model, settings, self.judge_template)

    @cached_property
    def judge_serving(self) -> Serving | None:
        """Who serves it; None without a judge, or where NeMo-Gym does."""
        model, settings = self.judge_model, self.judge_settings
        if model is None or settings is None or self.engine == "nemo_rl":
            return None
        return choose_server(model, settings, self.place)

    @property
    def gym_asks_the_judge(self) -> bool:
        """Whether questions go through NeMo-Gym's model server, which knows a GenRM's roles and text alone."""
        return self.engine == "nemo_rl"

    @cached_property
    def judge_template(self) -> str | None:
        """The judge's chat template, where it can be seen and read."""
        try:
            return seen_template(self.judge_model, self.place) if self.judge_model else None
        except ArtifactError:
            return None  # of a model that we serve another rule says so; another endpoint has its own

    def models(self) -> Iterator[ModelRef]:
        """Every model that the run loads itself."""
        return iter(())

    def number_types(self) -> Iterator[NumberType]:
        """Number types of the models that compute in processes of this run."""
        return iter(())

    def folders(self) -> dict[str, tuple[str, Path]]:
        """What the run writes: purpose -> (config key, folder)."""
        return {"run folder": ("", self.runs_dir)}

    def processes(self) -> Iterator[Process]:
        """What runs where."""
        return iter(())

    def inputs(self) -> Iterator[FileRef]:
        """What is read."""
        return iter(())

    def outputs(self) -> Iterator[FileRef]:
        """What is written."""
        return iter(())

    def promises(self) -> Iterator[Promise]:
        """What the run will make, as far as that is known before it: what steps after it are compiled against."""
        return iter(())

    def work(self) -> Work | None:
        """Sizes of the run, where it has steps."""
        return None

    def memory(self) -> Memory | GpuMemory | None:
        """Peak memory, where it can be estimated."""
        return None

    def sees(self, path: str | Path) -> bool:
        """Whether what the config names can be looked at from here."""
        return self.place.sees(Path(path))

    def error(
        self,
        key: str,
        message: str,
        *,
        hint: str | None = None,
        kind: type[NemotronError] = ConfigError,
        origin: Origin | None = None,
    ) -> Finding:
        """Something that would stop the job; ``kind`` decides the exit code."""
        return self._finding("error", key, message, hint, kind, origin)

    def warning(self, key: str, message: str, *, hint: str | None = None, origin: Origin | None = None) -> Finding:
        """Something that runs but is probably not meant."""
        return self._finding("warning", key, message, hint, ConfigError, origin)

    def note(self, key: str, message: str, *, hint: str | None = None) -> Finding:
        """Something worth knowing."""
        return self._finding("note", key, message, hint, ConfigError, None)

    def _finding(
        self,
        severity: Severity,
        key: str,
        message: str,
        hint: str | None,
        kind: type[NemotronError],
        origin: Origin | None,
    ) -> Finding:
        place = origin or (self.resolved.origin(key) if key else None)
        return Finding(severity, "", message, key or None, place, hint, exit_code=kind.exit_code)

    def refused(self, key: str, problem: NemotronError, *, origin: Origin | None = None) -> Finding:
        """An error that something raised."""
        place = origin or problem.origin
        return self.error(key, problem.message, hint=problem.hint, kind=type(problem), origin=place)


AnyStepJob = StepJob[BaseModel]


@dataclass(frozen=True)
class PlainJob(StepJob[M]):
    """A step that trains nothing: ordinary Python in the worker's process."""

    reason: ClassVar[str] = "plain Python in this process"
    """Why there is no choice of an engine, for people."""

    @classmethod
    def of(cls, config: Any, resolved: Resolved, where: Surroundings, engines: Collection[EngineName]) -> Self:
        """The job of a config."""
        return cls(config, resolved, "plain", cls.reason, where.place, engines, where.runs_dir, where.env)
