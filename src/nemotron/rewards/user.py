"""A function of the user's own: ``module:function``. Imported in a worker process only."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nemotron.config.schema.rewards import UserRewardConfig
from nemotron.disk.home import expanded
from nemotron.errors import ConfigError
from nemotron.rewards.text import MISSING, field
from nemotron.rewards.types import VerifierError


class User:
    """See `UserRewardConfig`."""

    def __init__(self, config: UserRewardConfig) -> None:
        self._config = config
        self._function: Callable[..., Any] | None = None

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        lacking = [name for name in self._config.row_fields if field(row, name) is MISSING]
        return f"the row has no `{lacking[0]}`" if lacking else None

    def load(self) -> Callable[..., Any]:
        """Import the function.

        Raises:
            ConfigError: there is no such module or function, the module itself fails, or it takes other arguments.
        """
        if self._function is None:
            function = import_function(self._config.function, self._config.search_path)
            check_call(self._config.function, function, self._config.options)
            self._function = function
        return self._function

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """What the function says."""
        if problem := self.problem(row):
            raise VerifierError(problem)
        value = self.load()(row, response, ended=ended, **self._config.options)
        if isinstance(value, bool | int | float):
            return float(value)
        raise VerifierError(f"`{self._config.function}` gave a {type(value).__name__}, not a number")


def import_function(path: str, search_path: str) -> Callable[..., Any]:
    """The function ``module:function``, looked for in ``search_path`` first."""
    module_name, _, name = path.partition(":")
    folder = os.path.abspath(expanded(search_path))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigError(
                f"there is no module `{module_name}` for the reward function `{path}`",
                hint=f"looked in `{folder}` and among the installed packages; set `search_path` beside `function`",
            ) from error
        raise ConfigError(f"`{module_name}` imports `{missing}`, which is not installed") from error
    except Exception as error:  # the user's module may fail in any way
        raise ConfigError(f"importing `{module_name}` failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"the module `{module_name}` ({module.__file__}) has no function `{name}`")
    return function  # type: ignore[no-any-return]


def check_call(path: str, function: Callable[..., Any], options: Iterable[str]) -> None:
    """Refuse a function that cannot be called as rewards are: no answer would get a value.

    Raises:
        ConfigError: it takes other arguments, or gives no number but something to wait for.
    """
    form = "def score(row, response, *, ended, **options): ..."
    call = getattr(function, "__call__", None)  # noqa: B004  of an object, whose own is what runs
    for kind, found in (("async def", inspect.iscoroutinefunction), ("async generator", inspect.isasyncgenfunction)):
        if found(function) or found(call):
            raise ConfigError(
                f"the reward function `{path}` is an `{kind}`, and nobody waits for what it gives",
                hint=f"write it as `{form}`; `asyncio.run` inside waits",
            )
    if inspect.isgeneratorfunction(function):
        raise ConfigError(f"the reward function `{path}` is a generator, and gives no number", hint=f"write `{form}`")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # of one that is written in C nothing is known
    try:
        signature.bind({}, "", ended=True, **dict.fromkeys(options))
    except TypeError as error:
        named = "".join(f", {name}=..." for name in options)
        raise ConfigError(
            f"the reward function `{path}` cannot be called with `(row, response, ended=...{named})`: {error}",
            hint=f"write it as `{form}`",
        ) from error
