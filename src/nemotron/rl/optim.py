"""Optimizers and learning-rate schedules by the names NeMo-RL's configs use.

``policy.optimizer: {name: torch.optim.AdamW, kwargs: {lr: 1e-6}}`` and ``policy.scheduler``: one ``{name, kwargs}``
or a list of them that ends in ``{milestones: [...]}``, chained by ``torch.optim.lr_scheduler.SequentialLR``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR

from nemotron.errors import ConfigError
from nemotron.rl.offload import keep_on_host
from nemotron.suggest import closest, listed

# LBFGS wants a closure and SparseAdam sparse gradients; the others need arguments a config cannot spell.
_NO_OPTIMIZERS = {"Optimizer", "LBFGS", "SparseAdam"}
_NO_SCHEDULERS = {
    "LRScheduler",
    "SequentialLR",
    "ChainedScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "ReduceLROnPlateau",
}


def optimizer_names() -> list[str]:
    """Names that ``policy.optimizer.name`` may have, e.g. ``torch.optim.AdamW``."""
    return _subclasses("torch.optim", torch.optim, Optimizer, _NO_OPTIMIZERS)


def scheduler_names() -> list[str]:
    """Names that an entry of ``policy.scheduler`` may have, e.g. ``torch.optim.lr_scheduler.LinearLR``."""
    return _subclasses("torch.optim.lr_scheduler", torch.optim.lr_scheduler, LRScheduler, _NO_SCHEDULERS)


def build_optimizer(name: str, kwargs: Mapping[str, Any], parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer ``name`` over ``parameters``.

    Raises:
        ConfigError: unknown name, unknown keyword, or a value the optimizer refuses.

    Example: ``build_optimizer("torch.optim.AdamW", {"lr": 1e-4}, policy.parameters())``.
    """
    cls = _resolve(name, optimizer_names(), torch.optim, "policy.optimizer.name")
    trainable = [p for p in parameters if p.requires_grad]
    return _construct(cls, "policy.optimizer.kwargs", kwargs, trainable)  # type: ignore[no-any-return]


def build_scheduler(spec: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, optimizer: Optimizer) -> LRScheduler:
    """The learning-rate schedule ``spec`` (see the module text); None or an empty list keeps the rate constant.

    Raises:
        ConfigError: unknown name or keyword, a refused value, or milestones that do not fit the list.
    """
    if not spec:
        return LambdaLR(optimizer, lambda _: 1.0)
    if isinstance(spec, Mapping):
        return _scheduler(spec, optimizer, "policy.scheduler")
    entries = [(i, entry) for i, entry in enumerate(spec) if "milestones" not in entry]
    milestones = [int(m) for entry in spec for m in entry.get("milestones", ())]
    if len(milestones) != len(entries) - 1:
        raise ConfigError(
            f"`policy.scheduler` lists {len(entries)} schedules and {len(milestones)} milestones",
            hint=f"end the list with `milestones:` and {len(entries) - 1} step numbers, one per change",
        )
    if milestones != sorted(set(milestones)):
        raise ConfigError(
            "`policy.scheduler` milestones are not increasing", hint="list each step number once, in order"
        )
    schedulers = [_scheduler(entry, optimizer, f"policy.scheduler[{i}]") for i, entry in entries]
    if len(schedulers) == 1:
        return schedulers[0]
    return SequentialLR(optimizer, schedulers, milestones)


class Optimization:
    """An optimizer, its schedule and the limit on the gradient norm, stepped together.

    Example::

        adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": 1e-4}}
        optimization = Optimization.build(policy.parameters(), optimizer=adamw, max_grad_norm=1.0)
        loss.backward()
        norm = optimization.clip_and_step()
        optimization.step_scheduler()
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler, *, max_grad_norm: float | None = None) -> None:
        """``max_grad_norm``: global L2 norm to clip to; None or 0 only measures it."""
        self.optimizer, self.scheduler = optimizer, scheduler
        self.max_grad_norm = max_grad_norm or None

    @classmethod
    def build(
        cls,
        parameters: Iterable[nn.Parameter],
        *,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        max_grad_norm: float | None = None,
        offload: bool = False,
    ) -> Optimization:
        """From ``policy.optimizer``, ``policy.scheduler`` and ``policy.max_grad_norm``.

        Args:
            offload: keep the optimizer's state in host memory between steps (``nemotron.rl.offload``).

        Raises:
            ConfigError: torch refuses the optimizer or the schedule.
        """
        built = build_optimizer(optimizer["name"], optimizer.get("kwargs") or {}, parameters)
        if offload:
            keep_on_host(built)
        return cls(built, build_scheduler(scheduler, built), max_grad_norm=max_grad_norm)

    @property
    def learning_rate(self) -> float:
        """Of the next step, first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def clip_and_step(self) -> float:
        """Clip, step, clear the gradients; the norm before clipping. The weights stay as they are when it is not
        finite."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or math.inf))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def step_scheduler(self) -> None:
        """Advance the learning rate by one step of the schedule. Raises ConfigError behind its last one."""
        try:
            self.scheduler.step()
        except ValueError as error:  # of torch's, OneCycleLR has an end
            raise ConfigError(
                f"the learning-rate schedule has ended before the run: {error}",
                hint="give `OneCycleLR` as many `total_steps` as the run makes",
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: moments, step counts, position in the schedule."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``'s result."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def _scheduler(spec: Mapping[str, Any], optimizer: Optimizer, key: str) -> LRScheduler:
    if "name" not in spec:
        raise ConfigError(f"`{key}` has no `name`", hint=f"e.g. `name: {scheduler_names()[0]}`")
    cls = _resolve(spec["name"], scheduler_names(), torch.optim.lr_scheduler, f"{key}.name")
    return _construct(cls, f"{key}.kwargs", spec.get("kwargs") or {}, optimizer)  # type: ignore[no-any-return]


def _subclasses(prefix: str, module: Any, base: type, without: set[str]) -> list[str]:
    public = ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    return sorted(
        f"{prefix}.{name}"
        for name, value in public
        if isinstance(value, type) and issubclass(value, base) and name not in without
    )


def _resolve(name: str, allowed: list[str], module: Any, key: str) -> type:
    if name not in allowed:
        short = {candidate.rsplit(".", 1)[1].lower(): candidate for candidate in allowed}
        close = closest(name.rsplit(".", 1)[-1].lower(), short)
        hint = f"did you mean `{short[close]}`?" if close else f"choose one of {listed(allowed)}"
        raise ConfigError(f"`{key}` is `{name}`, which is not a class that can be used here", hint=hint)
    found: type = getattr(module, name.rsplit(".", 1)[1])
    return found


def _construct(cls: type, key: str, kwargs: Mapping[str, Any], subject: Any) -> Any:
    """``cls(subject, **kwargs)`` with the user's mistakes turned into ConfigError."""
    accepted = list(inspect.signature(cls).parameters)[1:]
    for name in kwargs:
        if name not in accepted:
            close = closest(name, accepted)
            meant = f"did you mean `{close}`? " if close else ""
            raise ConfigError(
                f"`{key}.{name}` is not an argument of {cls.__name__}",
                hint=f"{meant}{cls.__name__} takes {listed(accepted)}",
            )
    try:
        return cls(subject, **kwargs)
    except _REFUSALS as error:
        raise ConfigError(f"`{key}`: {cls.__name__} refuses these values: {error}") from error


_REFUSALS = (TypeError, ValueError, LookupError, AssertionError, ArithmeticError, RuntimeError, AttributeError)
"""What torch's optimizers and schedules raise when they are given what they cannot compute with."""


def prove(
    key: str,
    optimizer: Mapping[str, Any] | None,
    scheduler: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> None:
    """Take two steps with a parameter of no model: what torch refuses is said before models are loaded.

    Args:
        key: ``policy`` or ``value``, whose they are; a missing optimizer proves nothing.

    Raises:
        ConfigError: it refuses a value.
    """
    if optimizer is None:
        return
    parameter = nn.Parameter(torch.zeros(2, 2))
    built = Optimization.build([parameter], optimizer=optimizer, scheduler=scheduler)
    try:
        for _ in range(2):
            parameter.grad = torch.ones_like(parameter)
            built.clip_and_step()
            built.step_scheduler()
    except _REFUSALS as error:
        raise ConfigError(
            f"`{key}.optimizer` or `{key}.scheduler` cannot take a step with these values: {error}",
            hint="correct their `kwargs`",
        ) from error
