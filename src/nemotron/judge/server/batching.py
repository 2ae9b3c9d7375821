"""Gathers requests into batches: whatever arrives while the model is busy is decoded together next."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nemotron.judge.server.constraint import Constraint

# A client sends a group's comparisons back to back: wait as long as they keep coming, but not longer than this.
_GATHER_STEP_S = 0.002
_GATHER_LIMIT_S = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """One text to write."""

    prompt_ids: list[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    constraint: Constraint | None = None
    """What the text is held to."""
    top_logprobs: int = 0
    """How many tokens are told at each position, with their log-probabilities."""

    @property
    def family(self) -> tuple[float, float, bool]:
        """Jobs of one family can be decoded together."""
        return (self.temperature, self.top_p, self.is_reading)

    @property
    def is_reading(self) -> bool:
        """Nothing is written: probabilities of one token are asked for."""
        return self.max_tokens == 1 and self.top_logprobs > 0


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote for a job."""

    token_ids: list[int]
    """Without the end-of-sequence token."""
    logprobs: list[float]
    """One per token id."""
    tokens: int
    """Tokens computed, the end-of-sequence token included."""
    stopped: bool
    """Ended by itself, not by ``max_tokens``."""
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    """One list per token id: the likeliest tokens there, where they were asked for."""


Deliver = Callable[[int, Written], None]


class Writer(Protocol):
    """Decodes a batch."""

    def __call__(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        """Write every job (all of one family), calling ``deliver(index, written)`` for each as soon as it has ended."""


class Batcher:
    """Runs a writer in a thread of its own, one batch after the other, at most ``max_batch_size`` jobs each."""

    def __init__(self, writer: Writer, max_batch_size: int) -> None:
        self._writer = writer
        self._max = max_batch_size
        self._waiting: deque[tuple[Job, asyncio.Future[Written]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="judge-model")

    async def write(self, job: Job) -> Written:
        """Queue a job and wait for its text. Raises what the writer raised."""
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Serve batches until cancelled."""
        while True:
            await self._arrived.wait()
            await self._gather()
            batch = self._take()
            if batch:
                await self._decode(batch)
            if not self._waiting:
                self._arrived.clear()

    async def _gather(self) -> None:
        seen = 0
        deadline = asyncio.get_running_loop().time() + _GATHER_LIMIT_S
        while seen < len(self._waiting) < self._max and asyncio.get_running_loop().time() < deadline:
            seen = len(self._waiting)
            await asyncio.sleep(_GATHER_STEP_S)

    def _take(self) -> list[tuple[Job, asyncio.Future[Written]]]:
        """The oldest job and the others of its family, oldest first; jobs whose client has left are dropped."""
        alive = deque(entry for entry in self._waiting if not entry[1].done())
        batch: list[tuple[Job, asyncio.Future[Written]]] = []
        rest: deque[tuple[Job, asyncio.Future[Written]]] = deque()
        for entry in alive:
            fits = len(batch) < self._max and entry[0].family == alive[0][0].family
            (batch if fits else rest).append(entry)
        self._waiting = rest
        return batch

    async def _decode(self, batch: Sequence[tuple[Job, asyncio.Future[Written]]]) -> None:
        loop = asyncio.get_running_loop()

        def deliver(index: int, written: Written) -> None:
            loop.call_soon_threadsafe(_resolve, batch[index][1], written)

        work = loop.run_in_executor(self._thread, self._writer, [job for job, _ in batch], deliver)
        await asyncio.wait([work])
        error = work.exception()
        # Results were handed over by call_soon before the executor's own completion, so all of them are in by now.
        for _, future in batch:
            if error is not None and not future.done():
                future.set_exception(error)


def _resolve(future: asyncio.Future[Written], written: Written) -> None:
    if not future.done():
        future.set_result(written)
