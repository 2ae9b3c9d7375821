"""Counts the tries of a request to a server that may be started again while it is asked."""

from __future__ import annotations

from dataclasses import dataclass

import tenacity


class Interrupted(Exception):
    """The server was started again while it was asked, so it is asked again: that is no try of its own."""


@dataclass
class Tries:
    """When a request is given up (tenacity's ``stop``): after so many tries that the server has seen to their end."""

    allowed: int
    interrupted: int = 0

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        if state.outcome is not None and isinstance(state.outcome.exception(), Interrupted):
            self.interrupted += 1
            return False
        return state.attempt_number - self.interrupted >= self.allowed
