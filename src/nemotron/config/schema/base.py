"""Bases of every config model: strict by default, open only where that is declared.

Models are built when they are first used, so that a command pays for those of its own step alone. The texts below their
fields are read by `nemotron.config.docs`, when somebody asks for them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A section whose keys are all known. Unknown keys, coerced types and later writes are refused."""

    model_config = ConfigDict(defer_build=True, extra="forbid", strict=True, frozen=True)


class Open(Strict):
    """A section that is passed through: keys we know are typed, others are kept as they are.

    Used only for what upstream itself leaves open (``vllm_kwargs``, NeMo-Gym server blocks ...).
    """

    model_config = ConfigDict(defer_build=True, extra="allow", strict=True, frozen=True)
