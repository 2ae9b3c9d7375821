"""Optimizers and schedules that torch would refuse are refused by the dry run, without torch."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from nemotron.compile.probes.torch_optim import Family, faults, table
from nemotron.errors import ConfigError
from nemotron.rl.optim import Optimization
from tests.unit.compile.compile_world import LAPTOP, NODE, CompileStep, named

SCRIPT = Path(__file__).parents[3] / "scripts" / "torch_signatures.py"
STEPS = ("rlhf", "rlvr", "dpo", "rm", "ppo")
LR = "torch.optim.lr_scheduler"
# key below the section of a model, word for it, end of the message, hint
MISTAKES = [
    ("optimizer.name", "torch.optim.AdmaW", "none of torch's optimizers", "did you mean `torch.optim.AdamW`?"),
    ("optimizer.kwargs.betas", "[0.9]", "a list of 2 numbers from 0 to below 1, not `[0.9]`", None),
    ("optimizer.kwargs.betas", "[0.9, 1.5]", "a list of 2 numbers from 0 to below 1, not `[0.9, 1.5]`", None),
    ("optimizer.kwargs.eps", "tiny", "a number, not `tiny`", None),
    ("optimizer.kwargs.amsgrad", "maybe", "true or false, not `maybe`", None),
    ("optimizer.kwargs.beta", "0.9", "no argument `beta`", "did you mean `betas`?"),
    ("scheduler", f"[{{name: {LR}.LinaerLR, kwargs: {{}}}}]", "none of torch's schedulers", f"`{LR}.LinearLR`?"),
    ("scheduler", f"[{{name: {LR}.StepLR, kwargs: {{gamma: 0.5}}}}]", "StepLR needs `step_size`", None),
    ("scheduler", f"[{{name: {LR}.LinearLR, kwargs: {{total_iters: ten}}}}]", "a whole number, not `ten`", None),
    ("scheduler", f"[{{name: {LR}.LinearLR, kwargs: {{start_factor: 0}}}}]", "above 0 and up to 1, not `0`", None),
    ("scheduler", f"[{{name: {LR}.StepLR, kwargs: {{step_size: 0}}}}]", "a whole number from 1, not `0`", None),
]


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the table is that of torch 2.13")
def test_the_table_is_that_of_the_installed_torch() -> None:
    assert runpy.run_path(str(SCRIPT))["table"]() == table()


@pytest.mark.parametrize(
    ("step", "key", "value", "message", "hint"),
    # Each mistake with two of the steps, with all in `make full`.
    [
        pytest.param(step, *mistake, marks=[] if (number + at) % 5 < 2 else pytest.mark.full)
        for number, mistake in enumerate(MISTAKES)
        for at, step in enumerate(STEPS)
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_found(
    compiled_step: CompileStep, step: str, key: str, value: str, message: str, hint: str | None
) -> None:
    for section in ("policy", "value") if step == "ppo" else ("policy",):
        sign = "+" if key.endswith((".beta", ".amsgrad")) else ""
        [finding] = named(compiled_step(step, f"{sign}{section}.{key}={value}"), "optimizer")
        assert str(finding.key).startswith(f"{section}.{key}")
        assert finding.severity == "error"
        assert finding.origin is not None
        assert message in finding.message
        assert hint is None or hint in str(finding.hint)


@pytest.mark.parametrize("step", STEPS)
def test_a_learning_rate_that_is_no_number(compiled_step: CompileStep, step: str) -> None:
    for section in ("policy", "value") if step == "ppo" else ("policy",):
        plan = compiled_step(step, f"{section}.optimizer.kwargs.lr=fast")
        # A Megatron section refers to the key, and has a type.
        name = "wrong-type" if step in ("rlhf", "rlvr", "dpo") else "learning-rate"
        assert [(f.name, f.key) for f in plan.errors] == [(name, f"{section}.optimizer.kwargs.lr")]


def test_nemo_rl_takes_classes_of_ones_own(compiled_step: CompileStep) -> None:
    words = ("policy.optimizer.name=mine.Optimizer", "engine=nemo_rl")
    assert not named(compiled_step("rlhf", *words, place=NODE), "optimizer")
    assert named(compiled_step("rlhf", words[0], place=LAPTOP), "optimizer")


@pytest.mark.parametrize(
    ("family", "name", "kwargs"),
    [
        ("optimizers", "torch.optim.AdamW", {"betas": [0.9]}),
        ("optimizers", "torch.optim.AdamW", {"betas": [0.9, 1.0]}),
        ("optimizers", "torch.optim.AdamW", {"eps": -1.0}),
        ("optimizers", "torch.optim.SGD", {"momentum": -0.1}),
        ("optimizers", "torch.optim.Adam", {"weight_decay": -0.1}),
        ("schedulers", f"{LR}.StepLR", {}),
        ("schedulers", f"{LR}.CosineAnnealingLR", {"t_max": 5}),
        ("schedulers", f"{LR}.OneCycleLR", {"max_lr": 1.0, "total_steps": 4, "anneal_strategy": "log"}),
    ],
)
def test_torch_refuses_it_too(family: Family, name: str, kwargs: dict[str, object]) -> None:
    assert list(faults(family, name, kwargs))
    weights = [torch.nn.Parameter(torch.zeros(2, 2))]
    entry = {"name": name, "kwargs": kwargs}
    optimizer = entry if family == "optimizers" else {"name": "torch.optim.SGD", "kwargs": {"lr": 0.1}}
    with pytest.raises(ConfigError):
        Optimization.build(weights, optimizer=optimizer, scheduler=None if optimizer is entry else entry)


@pytest.mark.parametrize(
    ("family", "name", "kwargs"),
    [
        ("optimizers", "torch.optim.AdamW", {"lr": 1e-4, "betas": [0.9, 0.95], "foreach": None, "fused": False}),
        ("optimizers", "torch.optim.Adafactor", {"eps": [None, 1e-3]}),
        ("schedulers", f"{LR}.LinearLR", {"start_factor": 0.1, "total_iters": 10.0}),
        ("schedulers", f"{LR}.MultiStepLR", {"milestones": [2, 4]}),
    ],
)
def test_what_torch_takes_is_right(family: Family, name: str, kwargs: dict[str, object]) -> None:
    assert not list(faults(family, name, kwargs))


@pytest.mark.parametrize(
    "name", ["LinearLR", "ConstantLR", "CosineAnnealingWarmRestarts", "CosineAnnealingLR", "StepLR"]
)
@pytest.mark.parametrize("value", [-2, -1, 0, 1, 2])
def test_numbers_beyond_what_torch_takes_are_known(name: str, value: int) -> None:
    """An argument at a time, against torch itself, which refuses it when it is made or divides by it in a step."""
    arguments = table()["schedulers"][f"{LR}.{name}"]
    needed = {one: 3 for one, kind in arguments.items() if kind.endswith("!")}
    for argument, kind in arguments.items():
        if kind.rstrip("!?") not in ("int", "float") or argument == "last_epoch":
            continue
        kwargs = {**needed, argument: value}
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        try:
            made = getattr(torch.optim.lr_scheduler, name)(optimizer, **kwargs)
            for _ in range(4):
                optimizer.step()
                made.step()
        except (ValueError, ZeroDivisionError):
            assert [fault.place for fault in faults("schedulers", f"{LR}.{name}", kwargs)] == [f".kwargs.{argument}"]
