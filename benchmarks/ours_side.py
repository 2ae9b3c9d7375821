"""What our sides of all comparisons share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.rl.threads import apply_threads, set_environment
from work import LEARNING_RATE, LORA_ALPHA, Asked, StepClock

if TYPE_CHECKING:
    from nemotron.rl.optim import Optimization
    from nemotron.rl.policy import Policy


class Recorder:
    """Notes when steps end; a ``nemotron.rl.loops.recorder.Recorder``."""

    def __init__(self, check: Callable[[Mapping[str, float]], None] = lambda metrics: None) -> None:
        self.clock = StepClock()
        self._check = check

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing is kept."""

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Nothing is kept."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step has ended."""
        self._check(metrics)
        self.clock.tick()

    def checkpoint(self, path: Path) -> None:
        """There is none."""


def asked() -> Asked:
    """What this process is asked, with the threads set before torch is imported and after."""
    found = Asked.read()
    set_environment(found.threads)
    apply_threads(found.threads)
    return found


def load(asked: Asked) -> Policy:
    """The policy, with fresh adapters if they are asked for."""
    from nemotron.config.schema.dtensor import LoraConfig
    from nemotron.rl.lora import add_adapters
    from nemotron.rl.policy import Policy

    policy = Policy.load(asked.model, precision=asked.precision, device=asked.device)  # type: ignore[arg-type]
    if not asked.lora:
        return policy
    config = LoraConfig(
        enabled=True,
        dim=asked.lora,
        alpha=LORA_ALPHA,
        dropout=0.0,
        dropout_position="post",
        target_modules=[],
        exclude_modules=[],
        lora_A_init="xavier",
        match_all_linear=True,
    )
    return add_adapters(policy, config, seed=1)


def reference(policy: Policy, asked: Asked) -> Policy:
    """The frozen policy before training: a copy, or with adapters the same model without them."""
    from nemotron.rl.lora import Reference

    return Reference(policy) if asked.lora else policy.frozen_copy()


def optimization(parameters: Iterable[Any]) -> Optimization:
    """AdamW with clipped gradients, as TRL's trainers have it."""
    from nemotron.rl.optim import Optimization

    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": LEARNING_RATE}}
    trained = [one for one in parameters if one.requires_grad]
    return Optimization.build(trained, optimizer=adamw, max_grad_norm=1.0)
