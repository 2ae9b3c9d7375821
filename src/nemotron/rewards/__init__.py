"""Verifiers: programs that judge a response against its row, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nemotron.rewards import tiny_world


class Verifier(Protocol):
    """Judges one response to one row: aspect name -> passed; ``fully_right`` is the aspect that counts as accuracy."""

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> dict[str, bool]: ...


VERIFIERS: dict[str, Verifier] = {"tiny_world": tiny_world.score}
"""Verifiers by the name that ``eval.heldout.verifier`` uses."""
