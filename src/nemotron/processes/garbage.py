"""When Python looks for garbage: seldom while a process starts, as usual while it works, not on its way out.

Modules and models live to the end of a process. Looking for garbage among what is new after every few hundred objects
finds none of it, nor does the search of a process that ends, before it takes everything apart: with torch and
transformers a third of what it takes to start and to end.
"""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
_STARTING = (500_000, *_USUAL[1:])


def starting() -> None:
    """Look seldom from now on."""
    gc.set_threshold(*_STARTING)


def started() -> None:
    """Look as usual from now on, but never at what is there already. A process of ours calls it at most once."""
    gc.freeze()
    gc.set_threshold(*_USUAL)


def ending() -> None:
    """Never look at what is there: the process has nothing left to do but to end."""
    gc.freeze()
