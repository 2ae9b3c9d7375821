"""Which engine runs a job."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from nemotron.config.schema.extras import EngineChoice
from nemotron.manifest import EngineName
from nemotron.place import Place


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine and why."""

    engine: EngineName
    reason: str


def choose(wanted: EngineChoice, place: Place, engines: Collection[EngineName]) -> Choice:
    """``auto`` takes NeMo-RL where it is installed beside a CUDA device, else the embedded engine.

    Args:
        engines: those that the step has an entry for.
    """
    if wanted == "embedded":
        return Choice("embedded", "the config asks for it")
    if wanted == "nemo_rl":
        return Choice("nemo_rl", "the config asks for it")
    where = "here" if place.is_here else f"on `{place.name}`"
    # Of a cluster it is not known from here: its image says it, and there is no other reason to go to a cluster.
    if place.has("nemo_rl") is False:
        return Choice("embedded", f"NeMo-RL is not installed {where}")
    if not place.has_cuda:
        return Choice("embedded", "NeMo-RL needs a CUDA device, none is visible")
    if "nemo_rl" not in engines:
        return Choice("embedded", "this step does not run on NeMo-RL")
    if not place.is_here:
        return Choice("nemo_rl", f"`{place.name}` has GPUs")
    return Choice("nemo_rl", "NeMo-RL is installed and a CUDA device is visible")
