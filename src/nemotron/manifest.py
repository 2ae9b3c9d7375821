"""step.toml and types.toml as typed values. Light on purpose: `steps list` and `--help` import this and little else.

A step is a folder below ``nemotron/steps`` that holds a step.toml; its id is that folder's path and is written nowhere.
Keys that are not known are errors, and one broken manifest does not hide the others.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from nemotron.disk.documents import MOST_TOML, read_bytes
from nemotron.disk.faults import reason
from nemotron.disk.home import expanded
from nemotron.disk.walk import files_below
from nemotron.errors import ConfigError, NemotronError, NotFoundError, Origin
from nemotron.own_code import PACKAGE, STEP_ID, raised_by_own_code
from nemotron.suggest import closest, listed
from nemotron.tables import TableError, read_table

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")

STEPS = Path(__file__).parent / "steps"
"""The folder of the shipped steps."""
VARIABLE = "NEMOTRON_STEPS"
"""Folders with steps of one's own, separated as in PATH; ``nemotron --steps-dir`` sets it."""


@dataclass(frozen=True, kw_only=True)
class ArtifactType:
    """One table of types.toml; the table's name is the type's."""

    description: str
    on_disk: str
    """What it looks like on disk, in a sentence."""
    is_a: list[str] = field(default_factory=list)
    """Types that it can stand in for without conversion."""
    convert_to: dict[str, str] = field(default_factory=dict)
    """Target type -> id of the step that converts."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One ``[[consumes]]`` or ``[[produces]]`` table: a typed input or output and the config keys that carry it."""

    type: str
    description: str
    bind: list[str]
    """Dotted config keys. Where there are several, each that is set carries one."""
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Advice: when this holds, do that."""

    when: str
    then: str


@dataclass(frozen=True, kw_only=True)
class KnownError:
    """An error name as findings carry it, and how to recover."""

    name: str
    recovery: str


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the step asks of a cluster when the profile does not say otherwise."""

    nodes: int = 1
    gpus_per_node: int = 0


EngineName = Literal["embedded", "nemo_rl", "plain"]
"""``embedded``: our own loops with torch, on one machine. ``nemo_rl``: NeMo-RL's scripts under Ray. ``plain``: ordinary
Python in the worker's process, for steps that train nothing."""

LIBRARIES = ("nemo_rl",)
"""Last parts of a step's id that say with what it works, not what it does."""
ViewName = Literal["judged_grpo", "verified_grpo", "ppo", "dpo", "reward_model", "sft", "audit"]
"""What a run of a step shows while and after it works: see :mod:`nemotron.runs.views`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step as its manifest describes it; ``id`` and ``folder`` come from the place of the file, not from its text."""

    id: str
    folder: Path
    title: str
    description: str
    launch: Literal["ray", "python"]
    """How its process starts on a cluster."""
    tags: list[str] = field(default_factory=list)
    image: str | None = None
    view: ViewName | None = None
    """Numbers and charts that its runs show; none for a step that trains and measures nothing."""
    common: list[str] = field(default_factory=list)
    """Keys that most users change, beside those that artifacts are bound to: what `steps show` leads with."""
    resources: Resources = Resources()
    consumes: list[Artifact] = field(default_factory=list)
    produces: list[Artifact] = field(default_factory=list)
    strategies: list[Strategy] = field(default_factory=list)
    errors: list[KnownError] = field(default_factory=list)

    @property
    def category(self) -> str:
        """The first folder of the id, e.g. ``rl``."""
        return self.id.partition("/")[0]

    @property
    def is_shipped(self) -> bool:
        """Whether it comes with the product."""
        return self.folder.is_relative_to(STEPS)

    @property
    def config_dir(self) -> Path:
        """The folder of the shipped configs."""
        return self.folder / "config"

    @property
    def configs(self) -> list[str]:
        """Names for ``-c``, the default first."""
        names = sorted(path.stem for path in self.config_dir.glob("*.yaml"))
        return sorted(names, key=lambda name: name != "default")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every step that could be read, and what was wrong with the others."""

    steps: tuple[Step, ...]
    problems: Mapping[str, NemotronError] = field(default_factory=dict)
    """Id of a step whose manifest is broken -> the error."""


def load_types(path: Path = STEPS / "types.toml") -> dict[str, ArtifactType]:
    """Read types.toml.

    Raises:
        ConfigError: broken TOML, an unknown key, a type that names one which does not exist, or an `is_a` circle.
    """
    types = {name: _build(ArtifactType, table, path, f"[{name}]") for name, table in _read_toml(path).items()}
    for name, artifact in types.items():
        for other in (*artifact.is_a, *artifact.convert_to):
            if other not in types:
                raise _wrong(path, f"`{name}` names the type `{other}`, which does not exist", _guess(other, types))
        if any(is_a(parent, name, types) for parent in artifact.is_a):
            raise _wrong(path, f"`is_a` of `{name}` goes in a circle")
    return types


def is_a(name: str, other: str, types: Mapping[str, ArtifactType]) -> bool:
    """Whether an artifact of type ``name`` can be used where ``other`` is asked for, without conversion."""
    seen, todo = {name}, [name]
    while todo:
        new = {parent for parent in types[todo.pop()].is_a if parent in types} - seen
        seen |= new
        todo += new
    return other in seen


def load_catalog(root: Path = STEPS) -> Catalog:
    """Read every manifest below ``root`` and the folders of one's own steps, in order of id.

    Raises:
        NotFoundError: a folder of one's own that is none.
    """
    return _catalog(root, own_folders())


def own_folders() -> tuple[Path, ...]:
    """The folders that `NEMOTRON_STEPS` names.

    Raises:
        NotFoundError: one of them is no folder.
    """
    found = tuple(expanded(name).absolute() for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name)
    for folder in found:
        if not folder.is_dir():
            hint = f"`--steps-dir` and `{VARIABLE}` name a folder that holds `<id>/step.toml`"
            raise NotFoundError(f"there is no folder of steps `{folder}`", hint=hint)
    return found


@cache
def _catalog(root: Path, own: tuple[Path, ...]) -> Catalog:
    types = load_types(root / "types.toml")
    steps: dict[str, Step] = {}
    problems: dict[str, NemotronError] = {}
    for folder in (root, *own):
        for path in _manifests(folder):
            step_id = path.parent.relative_to(folder).as_posix()
            try:
                if step_id in steps:
                    raise _wrong(
                        path, f"there is a step `{step_id}` already, in `{steps[step_id].folder}`", "rename it"
                    )
                steps[step_id] = read_step(path, step_id, types)
            except NemotronError as error:
                problems[f"{step_id} ({folder})" if step_id in steps else step_id] = error
    return Catalog(tuple(steps[name] for name in sorted(steps)), problems)


def _manifests(folder: Path) -> list[Path]:
    try:
        return [path for path in files_below(folder) if path.name == "step.toml"]
    except OSError as error:
        raise NotFoundError(
            f"the folder of steps `{folder}` cannot be looked at: {reason(error)}",
            hint=f"`--steps-dir` and `{VARIABLE}` name a folder that holds `<id>/step.toml`",
        ) from error


def read_step(path: Path, step_id: str, types: Mapping[str, ArtifactType]) -> Step:
    """Read one step.toml.

    Raises:
        ConfigError: broken TOML, an unknown or missing key, a value of the wrong type, an unknown artifact type.
    """
    table = _read_toml(path)
    for name in ("id", "folder", "category"):
        if name in table:
            raise _wrong(path, f"`{name}` is not written here: it comes from the folder", "delete the line")
    step = _build(Step, {**table, "id": step_id, "folder": path.parent}, path, "")
    for artifact in (*step.consumes, *step.produces):
        if artifact.type not in types:
            raise _wrong(path, f"unknown artifact type `{artifact.type}`", _guess(artifact.type, types))
    return step


def short_name(step: str) -> str:
    """What a step is called for short: the end of its id, or what stands before it where that is a library's name.

    Example: ``short_name("rl/nemo_rl/dpo")`` is ``"dpo"``, ``short_name("sft/nemo_rl")`` is ``"sft"``.
    """
    parts = step.strip("/").split("/")
    return parts[-2] if len(parts) > 1 and parts[-1] in LIBRARIES else parts[-1]


def find_step(name: str, catalog: Catalog | None = None) -> Step:
    """The step whose id is ``name``, or whose id alone ends in ``/name`` or is so called for short.

    Raises:
        NotFoundError: none or several match; the hint names candidates.
        ConfigError: the manifest of that step is broken.
    """
    catalog = catalog or load_catalog()
    steps = {step.id: step for step in catalog.steps}
    ids = [*steps, *catalog.problems]
    wanted = name.strip("/")
    matches = [step_id for step_id in ids if step_id == wanted] or [
        step_id for step_id in ids if step_id.endswith(f"/{wanted}") or short_name(step_id) == wanted
    ]
    if len(matches) == 1:
        if matches[0] in catalog.problems:
            raise catalog.problems[matches[0]]
        return steps[matches[0]]
    if matches:
        raise NotFoundError(f"`{name}` could be several steps", hint=f"write one of {listed(sorted(matches))}")
    tails = {short_name(step_id): step_id for step_id in reversed(ids)}
    tail_guess = closest(wanted.rpartition("/")[2], tails)
    guess = closest(wanted, ids) or (tails[tail_guess] if tail_guess else None)
    shows = "`nemotron steps list` shows them all"
    hint = f"did you mean `{guess}`? {shows}" if guess else f"{shows}; steps of your own need `--steps-dir DIR`"
    raise NotFoundError(f"there is no step `{name}`", hint=hint)


def check_type(name: str | None, types: Mapping[str, ArtifactType] | None = None) -> None:
    """Raises NotFoundError: there is no artifact type of that name."""
    _check("artifact type", name, load_types() if types is None else types)


def select_steps(
    catalog: Catalog,
    *,
    category: str | None = None,
    consumes: str | None = None,
    produces: str | None = None,
    tag: str | None = None,
    types: Mapping[str, ArtifactType] | None = None,
) -> list[Step]:
    """Steps that match every filter given. Types honour `is_a`: a step that takes a type takes its kinds as well.

    Raises:
        NotFoundError: a filter names a category, tag or type that does not exist.
    """
    types = load_types() if types is None else types
    _check("category", category, {step.category for step in catalog.steps})
    _check("tag", tag, {tag for step in catalog.steps for tag in step.tags})
    check_type(consumes, types)
    check_type(produces, types)
    return [
        step
        for step in catalog.steps
        if (category is None or step.category == category)
        and (tag is None or tag in step.tags)
        and (consumes is None or any(is_a(consumes, artifact.type, types) for artifact in step.consumes))
        and (produces is None or any(is_a(artifact.type, produces, types) for artifact in step.produces))
    ]


class Declaration(Protocol):
    """What ``steps/<id>/step.py`` declares as ``STEP``. Importing it imports no engine and no torch."""

    @property
    def config(self) -> type[BaseModel]:
        """The model of the step's config."""

    @property
    def engines(self) -> Mapping[EngineName, str]:
        """The entry of every engine that can run the step: ``module:function``, or the script of NeMo-RL."""

    def preflight(self, config: Any, resolved: Any, where: Any) -> Any:
        """What is wrong with a typed config, and what would run: see :mod:`nemotron.compile.declaration`."""


def declaration(step: Step) -> Declaration:
    """What the step.py of a step declares.

    Raises:
        ConfigError: a step of one's own has none, or it declares nothing.
    """
    if step.is_shipped:
        found: Declaration = import_module(f"nemotron.steps.{step.id.replace('/', '.')}.step").STEP
        return found
    return _own_declaration(step)


def _own_declaration(step: Step) -> Declaration:
    """Of a folder that is on no path: it becomes a package of its own, so that `from .config import ...` works there,
    and `f"{__name__}:run"` names its function in every process."""
    path = step.folder / "step.py"
    package = f"{PACKAGE}{hashlib.sha256(str(step.folder).encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        made = ModuleType(package)
        made.__path__ = [str(step.folder)]
        setattr(made, STEP_ID, step.id)
        sys.modules[package] = made
    try:
        own: Declaration = import_module(f"{package}.step").STEP
    except ModuleNotFoundError as error:
        if error.name != f"{package}.step":
            raise _wrong(path, f"it needs the module `{error.name}`, which is not installed") from error
        raise _wrong(step.folder / "step.toml", "there is no `step.py` beside it") from None
    except AttributeError:
        raise _wrong(path, "it declares no `STEP`", "see docs/guides/write-a-step.md") from None
    except SyntaxError as error:
        raise ConfigError(f"broken Python: {error.msg}", origin=Origin(str(path), error.lineno)) from None
    except SystemExit as error:
        # Whatever its number says, the command has not done what it was asked for.
        raise raised_by_own_code(error) or error from None
    _check_own(own, path, package)
    return own


def _check_own(own: Declaration, path: Path, package: str) -> None:
    """Refuse a declaration that would only fail somewhere in our code, where nothing points at the step.

    Raises:
        ConfigError: it is none, its config cannot be built, or it names a function that is not there.
    """
    from pydantic import BaseModel

    config = getattr(own, "config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel) and hasattr(own, "preflight")):
        what = f"`STEP` is a `{type(own).__name__}` without a model of its config, where a `PlainStep` is expected"
        raise _wrong(path, what, "see docs/guides/write-a-step.md")
    try:
        config.model_rebuild()
    except Exception as error:  # pydantic's and Python's own, of every kind
        reason = str(error).partition("\n")[0]
        raise _wrong(path, f"the types of `{config.__name__}` cannot be read: {reason}") from error
    for entry in own.engines.values():
        module, _, function = entry.partition(":")
        # What is heavy may lie in a module of its own, which is not imported before the run.
        if module.startswith(f"{package}.") and module in sys.modules:
            names = vars(sys.modules[module])
            if not callable(names.get(function)):
                guess = _guess(function, [name for name, value in names.items() if callable(value)])
                raise _wrong(path, f"`STEP` runs `{function}`, and there is no function of that name", guess)


def _check(what: str, value: str | None, known: Iterable[str]) -> None:
    names = sorted(known)
    if value is not None and value not in names:
        raise NotFoundError(f"there is no {what} `{value}`", hint=_guess(value, names) or f"known: {listed(names)}")


def _guess(word: str, names: Iterable[str]) -> str | None:
    guess = closest(word, names)
    return f"did you mean `{guess}`?" if guess else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_bytes(path, MOST_TOML).decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise _wrong(path, f"broken TOML: {error}") from None
    except RecursionError:
        raise _wrong(path, "broken TOML: too many brackets inside each other") from None
    except UnicodeDecodeError as error:
        raise _wrong(path, f"not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise _wrong(path, f"it cannot be read: {error.strerror}") from None


def _build(kind: type[T], table: object, path: Path, where: str) -> T:
    try:
        return read_table(kind, table)
    except TableError as error:
        place = " ".join(filter(None, (where, error.section)))
        place = f" in `{place}`" if place else ""
        if error.problem == "unknown":
            guess = _guess(error.name, [one.name for one in fields(kind)])  # type: ignore[arg-type]
            raise _wrong(path, f"unknown key `{error.name}`{place}", guess) from None
        if error.problem == "missing":
            raise _wrong(path, f"the key `{error.name}` is missing{place}") from None
        raise _wrong(path, f"`{error.name}`{place} {error.detail}") from None


def _wrong(path: Path, message: str, hint: str | None = None) -> ConfigError:
    return ConfigError(f"`{path.name}` of `{path.parent.name}`: {message}", hint=hint, origin=Origin(str(path)))


def as_json(step: Step) -> dict[str, Any]:
    """The object of `steps list --json`."""
    listed_first = {"id": step.id, "title": step.title, "category": step.category, "configs": step.configs}
    left_out = ("strategies", "errors", "view", "common")
    written = {name: value for name, value in asdict(step).items() if name not in left_out}
    return {**listed_first, **written, "folder": str(step.folder)}
