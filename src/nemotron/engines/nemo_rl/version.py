"""Which NeMo-RL is driven: what differs from release to release is a value here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SECTIONS = ("grpo", "dpo", "rm", "ppo", "sft")
"""Sections of an algorithm; a config has one of them."""


@dataclass(frozen=True, slots=True)
class Version:
    """A release of NeMo-RL."""

    name: str
    gym: str
    """The NeMo-Gym that it brings."""
    scripts: Mapping[str, str]
    """Section -> official script, below the root of the tree."""
    gym_script: str
    """The script of rollouts through NeMo-Gym."""
    root: str
    """Where its container keeps the tree."""
    python: str
    """The interpreter of its container."""

    def script(self, section: str, *, gym: bool) -> str:
        """The official script for an algorithm."""
        return self.gym_script if gym else self.scripts[section]


V0_7_0 = Version(
    name="v0.7.0",
    gym="0.4.0",
    scripts=MappingProxyType({name: f"examples/run_{name}.py" for name in SECTIONS}),
    gym_script="examples/nemo_gym/run_grpo_nemo_gym.py",
    root="/opt/nemo-rl",
    python="/opt/nemo_rl_venv/bin/python",
)
CURRENT = V0_7_0
"""The one that jobs are compiled for."""
