"""Names of what is kept by time: ids that sort by it, and finding one by a part of its id."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from nemotron.errors import NotFoundError
from nemotron.suggest import closest, listed

_SHOWN = 5


class Named(Protocol):
    """Something with an id."""

    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=Named)


def dated_id(words: Iterable[str], otherwise: str) -> str:
    """An id for what starts now, e.g. ``20250131-154501-rlhf-tiny-9f3a``: second, words, time within the second.

    The last part counts 1/65536 s, so that :func:`by_time` orders what starts within a second; two processes that begin
    in the same one make one folder, and the second says that it exists. ``otherwise`` stands for a word without a
    letter that a file name may have.
    """
    slugs = [re.sub(r"[^A-Za-z0-9_.]+", "-", word).strip("-.") or otherwise for word in words]
    tick = _CLOCK.tick()
    return "-".join([datetime.fromtimestamp(tick >> 16).strftime("%Y%m%d-%H%M%S"), *slugs, f"{tick & 0xFFFF:04x}"])


def by_time(name: str) -> tuple[str, str]:
    """What to sort ids by, so that the oldest is first."""
    return name[:15], name[-4:]


class _Clock:
    """The time in 1/65536 s, never twice the same in a process."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def tick(self) -> int:
        with self._lock:
            self._last = max(time.time_ns() * 65536 // 1_000_000_000, self._last + 1)
            return self._last


_CLOCK = _Clock()


def by_part(known: Sequence[N], name: str, *, kind: str, where: str = "") -> N:
    """The one of ``known``, the oldest first, whose id is ``name``, or begins or ends with it.

    Args:
        kind: what they are, in the singular.
        where: what a message says behind a name that nothing goes by.

    Raises:
        NotFoundError: none, or more than one, goes by that name.
    """
    exact = [one for one in known if one.id == name]
    found = exact or [one for one in known if name and (one.id.startswith(name) or one.id.endswith(name))]
    if len(found) == 1:
        return found[0]
    ids = [one.id for one in reversed(found or known)]
    if found:
        raise NotFoundError(f"`{name}` fits {len(found)} {kind}s", hint=f"say which: {_some(ids)}")
    guess = closest(name, ids)
    hint = f"did you mean `{guess}`?" if guess else f"there are: {_some(ids)}"
    raise NotFoundError(f"no {kind} `{name}`{where}", hint=hint)


def _some(ids: list[str]) -> str:
    shown = listed(ids[:_SHOWN])
    return shown if len(ids) <= _SHOWN else f"{shown} and {len(ids) - _SHOWN} more"
