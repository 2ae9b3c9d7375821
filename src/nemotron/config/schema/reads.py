"""Which keys the embedded engine reads; NeMo-RL reads all that are its own. Marked beside the fields.

A field that is not marked is not read, unless no field of its model is: such a section is read as a whole where the
field that holds it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, init=False)
class Embedded:
    """Read by the embedded engine."""

    sections: tuple[str, ...]
    """Algorithms that read it, by the key of their section; empty: all."""

    only: tuple[str, ...] = ()
    """Of a section that several places share: the fields that are read in this place; empty: as they are marked."""

    def __init__(self, *sections: str, only: tuple[str, ...] = ()) -> None:
        object.__setattr__(self, "sections", sections)
        object.__setattr__(self, "only", only)

    def by(self, section: str) -> bool:
        """Whether the algorithm with that section reads it."""
        return not self.sections or section in self.sections


Read = Annotated[T, Embedded()]
"""A field that the embedded engine reads, whatever the algorithm."""
