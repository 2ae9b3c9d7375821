"""Answers that belong together and arrive apart: nothing is judged before a group is whole.

NeMo-Gym 0.4.0 judges each answer as it comes, and drops the comparisons that are still under way when the last one is
through. Here the last arrival starts the work, and everybody gets what became of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

M = TypeVar("M")
R = TypeVar("R")
KEPT = 1024
"""Groups with a name whose result is remembered, for a client that asks again because it lost the answer."""


class IncompleteGroup(Exception):
    """The others did not come in time."""


class SlotTaken(Exception):
    """Another answer has this place in the group."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer belongs."""

    key: Hashable
    number: int | None = None
    """Its number among the answers, counted from 0, where it has one."""
    named: bool = False
    """The key is this group's alone, and the number a place in it. Otherwise the first answers to arrive are a group,
    and the next ones another."""


@dataclass
class _Group(Generic[M, R]):
    result: asyncio.Future[R]
    timer: asyncio.TimerHandle | None = None
    members: dict[int, tuple[int | None, M]] = field(default_factory=dict)
    """Place -> (the number that the answer has, the answer)."""

    def ordered(self) -> list[int]:
        """Keys of the members in the order of their own numbers, where each has one; else as they came."""
        numbers = [number for number, _ in self.members.values()]
        if None in numbers or len(set(numbers)) < len(numbers):
            return list(self.members)
        return sorted(self.members, key=lambda key: self.members[key][0] or 0)


class Gathering(Generic[M, R]):
    """Groups of ``size``. Belongs to one event loop.

    Example: ``position, result = await gathering.join(Place(prompt), answer)``; ``judge`` had all answers in order.
    """

    def __init__(self, size: int, judge: Callable[[Sequence[M]], Awaitable[R]], *, patience_s: float) -> None:
        """``patience_s``: how long the first of a group waits for the last."""
        self.size = size
        self._judge = judge
        self._patience_s = patience_s
        self._open: dict[Hashable, _Group[M, R]] = {}
        self._finished: OrderedDict[Hashable, _Group[M, R]] = OrderedDict()
        self._working: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Answers in groups that are not whole."""
        return sum(len(group.members) for group in self._open.values())

    async def join(self, place: Place, member: M) -> tuple[int, R]:
        """Wait for the group; returns the member's position in it and what ``judge`` said.

        Raises:
            IncompleteGroup: the others did not come in time.
            SlotTaken: a different answer has this place.
            ValueError: ``place.number`` is no number of the group.
            Exception: what ``judge`` raised.
        """
        slot = place.number if place.named else None
        if slot is not None and not 0 <= slot < self.size:
            raise ValueError(f"there is no answer {slot} in a group of {self.size}")
        group = self._finished.get(place.key) if slot is not None else None
        group = group or self._open.get(place.key) or self._begin(place.key)
        key = self._next(group) if slot is None else slot
        here = group.members.get(key)
        if here is not None and here[1] != member:
            raise SlotTaken(f"another answer has place {key} of the group")
        mine = here is None
        if mine:
            group.members[key] = (place.number, member)
            if len(group.members) == self.size:
                self._complete(place, group)
        try:
            result = await asyncio.shield(group.result)
        except asyncio.CancelledError:
            if mine and self._open.get(place.key) is group:
                self._leave(place.key, group, key)
            raise
        return group.ordered().index(key), result

    def close(self) -> None:
        """Give up on everything."""
        for task in self._working:
            task.cancel()
        for group in self._open.values():
            _stop(group)
            group.result.cancel()
        self._open.clear()

    def _begin(self, key: Hashable) -> _Group[M, R]:
        loop = asyncio.get_running_loop()
        group: _Group[M, R] = _Group(loop.create_future())
        group.timer = loop.call_later(self._patience_s, self._expire, key, group)
        self._open[key] = group
        return group

    def _next(self, group: _Group[M, R]) -> int:
        return next(number for number in range(self.size + 1) if number not in group.members)

    def _complete(self, place: Place, group: _Group[M, R]) -> None:
        _stop(group)
        del self._open[place.key]
        if place.named:
            self._finished[place.key] = group
            while len(self._finished) > KEPT:
                self._finished.popitem(last=False)
        # The loop itself keeps no task alive.
        task = asyncio.get_running_loop().create_task(self._work(place, group))
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _work(self, place: Place, group: _Group[M, R]) -> None:
        try:
            result = await self._judge([group.members[key][1] for key in group.ordered()])
        except asyncio.CancelledError:
            group.result.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it was
            # What failed may be asked for again.
            self._finished.pop(place.key, None)
            _fail(group, error)
        else:
            group.result.set_result(result)

    def _leave(self, key: Hashable, group: _Group[M, R], member: int) -> None:
        """Somebody hung up. Their answer must not stay: nobody would read its reward, and the group would be full."""
        del group.members[member]
        if not group.members:
            _stop(group)
            del self._open[key]

    def _expire(self, key: Hashable, group: _Group[M, R]) -> None:
        if self._open.get(key) is group:
            del self._open[key]
            came, patience = len(group.members), self._patience_s
            _fail(group, IncompleteGroup(f"{came} of {self.size} answers came within {patience:g} s"))


def _stop(group: _Group[M, R]) -> None:
    if group.timer is not None:
        group.timer.cancel()


def _fail(group: _Group[M, R], error: Exception) -> None:
    group.result.set_exception(error)
    # Where nobody waits any more, the loop would complain that nobody has looked.
    group.result.exception()
