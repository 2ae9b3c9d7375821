"""All reward functions of a config on one answer, in the background and within their time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import LifoQueue
from types import TracebackType
from typing import Any, Self

from nemotron.config.schema.rewards import RewardConfig
from nemotron.contracts.heldout import Item
from nemotron.errors import NemotronError
from nemotron.processes.cores import usable_cores
from nemotron.rewards.code import Code
from nemotron.rewards.functions import CheckedFunction, build_function, isolated
from nemotron.rewards.isolation import Worker
from nemotron.rewards.types import Score, VerifierError


def build_rewards(config: RewardConfig) -> Scorer:
    """The scorer of a config; close it when done (it is a context manager).

    Raises:
        ConfigError: a user's function cannot be imported.
        NotAvailableError: the sandbox for code does not hold here, and ``allow_weak_sandbox`` is not set.
    """
    return Scorer(config)


class Scorer:
    """Weighted sum of reward functions. Thread-safe; equal answers get equal scores whatever the order."""

    def __init__(self, config: RewardConfig) -> None:
        self._functions: list[CheckedFunction] = [build_function(function) for function in config.functions]
        self._config = config
        self._closed = False
        self.labels = tuple(function.shown for function in config.functions)
        """Labels of the components, in the order of the config."""
        workers = min(8, max(1, usable_cores() // 2)) if config.workers == "auto" else config.workers
        # Last in, first out: few processes are started when there is little to do.
        self._workers: LifoQueue[Worker] = LifoQueue()
        self._all_workers = [Worker(config) for _ in range(workers)]
        for worker in reversed(self._all_workers):
            self._workers.put(worker)
        if any(map(isolated, config.functions)):
            # At once, so that a function that cannot be set up is found before anything is sampled.
            self._all_workers[0].start()
        for function in self._functions:
            if isinstance(function, Code):
                function.level()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="rewards")

    def score(self, row: Mapping[str, Any], response: str, *, ended: bool) -> Score:
        """Score one answer and wait for it."""
        components: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for index, label in enumerate(self.labels):
            components[label] = None
            try:
                components[label] = _checked(self._value(index, row, response, ended))
            except VerifierError as error:
                missing[label] = str(error)
        return Score(combine(self._config, components), components, missing)

    def submit(self, row: Mapping[str, Any], response: str, *, ended: bool) -> Future[Score]:
        """Score one answer in the background (``asyncio.wrap_future`` makes the result awaitable)."""
        return self._threads.submit(self.score, row, response, ended=ended)

    def score_many(self, items: Iterable[Item]) -> list[Score]:
        """Scores in the order of ``items``."""
        futures = [self.submit(row, response, ended=ended) for row, response, ended in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Drop what waits and end all child processes, in the middle of their work if need be."""
        self._closed = True
        # What waits is dropped before what runs is ended: a thread whose worker dies would take the next in line.
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all_workers:
            worker.kill()
        for function in self._functions:
            if isinstance(function, Code):
                function.kill()
        self._threads.shutdown(wait=True)
        for worker in self._all_workers:
            worker.stop()
        for function in self._functions:
            if isinstance(function, Code):
                function.close()

    def _value(self, index: int, row: Mapping[str, Any], response: str, ended: bool) -> float:
        if self._closed:
            raise VerifierError("the scorer is closed")
        function, settings = self._functions[index], self._config.functions[index]
        if not isolated(settings):
            try:
                return function(row, response, ended=ended)
            except (VerifierError, NemotronError):
                raise
            except Exception as error:  # an answer that breaks a function must not end the run
                raise VerifierError(f"raised {type(error).__name__}: {error}") from error
        if problem := function.problem(row):
            raise VerifierError(problem)
        timeout_s = settings.timeout_s or self._config.timeout_s
        worker = self._workers.get()
        try:
            return worker.call(index, row, response, ended=ended, timeout_s=timeout_s)
        finally:
            self._workers.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()


def combine(config: RewardConfig, components: Mapping[str, float | None]) -> float | None:
    """Weighted sum; None when a component is missing that is not optional, or when all are missing.

    An optional component that is missing hands its weight to the others: the sum over those that are there is scaled by
    (sum of |weights|) / (sum of |weights| that are there), so that answers stay comparable within their group.
    """
    total = present = reward = 0.0
    for function in config.functions:
        value = components[function.shown]
        total += abs(function.weight)
        if value is not None:
            present += abs(function.weight)
            reward += function.weight * value
        elif not function.optional:
            return None
    if present == 0.0:
        return None
    return reward if present == total else reward * (total / present)


def _checked(value: float) -> float:
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise VerifierError(f"the value {value!r} is not in [0, 1]")
    return value
