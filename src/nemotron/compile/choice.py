"""Which engine runs a job."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron.compile.machine import Machine
from nemotron.config.schema.extras import EngineChoice

Engine = str
"""``embedded`` or ``nemo_rl``."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine and why."""

    engine: Engine
    reason: str


def choose(wanted: EngineChoice, machine: Machine) -> Choice:
    """``auto`` takes NeMo-RL where it is installed beside a CUDA device, else the embedded engine."""
    if wanted == "embedded":
        return Choice("embedded", "the config asks for it")
    if wanted == "nemo_rl":
        return Choice("nemo_rl", "the config asks for it")
    if not machine.has_nemo_rl:
        return Choice("embedded", "NeMo-RL is not installed here")
    if not machine.has_cuda:
        return Choice("embedded", "NeMo-RL needs a CUDA device, none is visible")
    if not machine.has_adapter:
        return Choice("embedded", "this version of nemotron does not drive NeMo-RL yet")
    return Choice("nemo_rl", "NeMo-RL is installed and a CUDA device is visible")
