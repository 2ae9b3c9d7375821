"""What reward functions need of a row and of this machine, asked before anything starts."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar

from nemotron.config.schema import rewards as schema
from nemotron.config.schema.rewards import RewardConfig, RewardFunctionConfig
from nemotron.errors import ConfigError, DataError, NemotronError, NotAvailableError
from nemotron.install import install_extra
from nemotron.processes.environment import plain_environment
from nemotron.rewards.code import Code
from nemotron.rewards.functions import CheckedFunction, build_function
from nemotron.rewards.isolation import START_S
from nemotron.sandbox.box import containment


class _Row(Protocol):
    @property
    def fields(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=_Row)


@dataclass(frozen=True, slots=True)
class SetupProblem:
    """What a reward function lacks on this machine, in the terms of a `Finding`."""

    severity: Literal["error", "warning", "note"]
    name: str
    """Error name: ``missing-package``, ``reward-function``, ``weak-sandbox``."""
    index: int
    """Index into ``rewards.functions``."""
    message: str
    hint: str | None = None
    kind: type[NemotronError] = ConfigError
    """Decides the exit code."""


def row_problems(config: RewardConfig, row: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Why a row cannot be scored: (index into ``rewards.functions``, clause) for each function that cannot use it.

    Functions that cannot be set up here are left to `setup_problems`.
    """
    return [
        (index, problem)
        for index, function in usable_functions(config)
        if (problem := function.problem(row)) is not None
    ]


def scorable(config: RewardConfig | None, rows: Sequence[R]) -> list[R]:
    """The rows that all functions can score which are not optional, where the config leaves the others out; else all.

    Raises:
        DataError: none is left.
    """
    if config is None or config.unusable_rows == "refuse":
        return list(rows)
    needed = {index for index, function in enumerate(config.functions) if not function.optional}
    kept = [row for row in rows if not any(index in needed for index, _ in row_problems(config, row.fields))]
    if rows and not kept:
        raise DataError(
            f"none of {len(rows):,} rows can be scored, so `rewards.unusable_rows` leaves nothing",
            hint="set `rewards.unusable_rows=refuse` to see why",
        )
    return kept


def usable_functions(config: RewardConfig) -> tuple[tuple[int, CheckedFunction], ...]:
    """The functions that can be set up here, with their index."""
    return _functions(config.model_dump_json())


def setup_problems(config: RewardConfig) -> list[SetupProblem]:
    """What keeps functions from working here: packages, the user's module, schema files, the sandbox.

    A user's module is imported in a process of its own; the sandbox is tried out. Asked once per config and process.
    """
    return list(_all_setup(config.model_dump_json()))


@lru_cache(maxsize=8)
def _all_setup(config: str) -> tuple[SetupProblem, ...]:
    functions = RewardConfig.model_validate_json(config).functions
    return tuple(problem for index, function in enumerate(functions) for problem in _setup(index, function))


def _setup(index: int, function: RewardFunctionConfig) -> list[SetupProblem]:
    package = _missing_package(function)
    if package is not None:
        message = f"the reward function `{function.shown}` needs the package `{package}`"
        hint = install_extra("local")
        return [SetupProblem("error", "missing-package", index, message, hint, NotAvailableError)]
    if isinstance(function, schema.UserRewardConfig):
        return _own_function(index, function)
    try:
        built = build_function(function)
        if isinstance(built, Code):
            return _sandbox(index, built)
    except NemotronError as error:
        name = "weak-sandbox" if isinstance(error, NotAvailableError) else "reward-function"
        return [SetupProblem("error", name, index, error.message, error.hint, type(error))]
    return []


def _own_function(index: int, function: schema.UserRewardConfig) -> list[SetupProblem]:
    command = [sys.executable, "-m", "nemotron.rewards.worker", "--check", function.function, function.search_path]
    command += function.options
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=START_S,
            stdin=subprocess.DEVNULL,
            env=plain_environment(function.environment),
        )
    except subprocess.TimeoutExpired:
        message = f"importing `{function.function}` takes longer than {START_S:g} s"
        return [SetupProblem("error", "reward-function", index, message)]
    if result.returncode == 0:
        return []
    lines = result.stdout.splitlines() or [f"importing `{function.function}` ended with code {result.returncode}"]
    return [SetupProblem("error", "reward-function", index, lines[0], lines[1] if len(lines) > 1 else None)]


def _sandbox(index: int, code: Code) -> list[SetupProblem]:
    level = code.level()
    if level == "namespaces":
        return []
    why = containment()[1]
    reasons = ", ".join(f"{name}: {reason}" for name, reason in why.items())
    if level == "landlock":
        message = f"code is contained by Landlock and seccomp without namespaces ({reasons}): it cannot start processes"
        return [SetupProblem("note", "weak-sandbox", index, message)]
    message = f"code runs with resource limits and an audit hook only ({reasons}); code that means harm gets out"
    hint = "train only on code that you would run yourself, or move to a machine with user namespaces or Landlock"
    return [SetupProblem("warning", "weak-sandbox", index, message, hint)]


@lru_cache(maxsize=4)
def _functions(config: str) -> tuple[tuple[int, CheckedFunction], ...]:
    found = []
    for index, function in enumerate(RewardConfig.model_validate_json(config).functions):
        if _missing_package(function) is None:
            with contextlib.suppress(NemotronError):
                found.append((index, build_function(function)))
    return tuple(found)


def _missing_package(function: RewardFunctionConfig) -> str | None:
    packages = {schema.MathRewardConfig: "math_verify", schema.JsonSchemaRewardConfig: "jsonschema"}
    name = packages.get(type(function))
    return name.replace("_", "-") if name and importlib.util.find_spec(name) is None else None
