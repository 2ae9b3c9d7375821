"""Optimizers and schedules by NeMo-RL's names; clear errors for everything a config can get wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from nemotron.errors import ConfigError
from nemotron.rl.optim import Optimization, build_optimizer, build_scheduler, optimizer_names, scheduler_names


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]


def test_adamw_step_equals_torch() -> None:
    ours, theirs = weights(), weights()
    kwargs = {"lr": 0.1, "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}
    built = build_optimizer("torch.optim.AdamW", kwargs, ours)
    expected = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
    for parameters, optimizer in ((ours, built), (theirs, expected)):
        for p in parameters:
            p.grad = torch.full_like(p, 0.5)
        optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_frozen_parameters_are_left_out() -> None:
    trained, frozen = weights()
    frozen.requires_grad_(False)
    assert build_optimizer("torch.optim.SGD", {"lr": 1.0}, [trained, frozen]).param_groups[0]["params"] == [trained]


def test_names() -> None:
    assert "torch.optim.AdamW" in optimizer_names()
    assert "torch.optim.LBFGS" not in optimizer_names()
    assert "torch.optim.lr_scheduler.CosineAnnealingLR" in scheduler_names()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("torch.optim.AdmW", "did you mean `torch.optim.AdamW`?"), ("AdamW", "did you mean `torch.optim.AdamW`?")],
)
def test_unknown_optimizer_suggests(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_optimizer(name, {}, weights())
    assert caught.value.hint == hint


@pytest.mark.parametrize("name", ["os.system", "torch.nn.Linear", "builtins.eval", "torch.optim.LBFGS"])
def test_only_torch_optimizers(name: str) -> None:
    with pytest.raises(ConfigError, match="which is not a class that can be used here"):
        build_optimizer(name, {}, weights())


def test_unknown_keyword_names_the_accepted_ones() -> None:
    with pytest.raises(ConfigError, match=r"`policy.optimizer.kwargs.wieght_decay` is not an argument") as caught:
        build_optimizer("torch.optim.AdamW", {"wieght_decay": 0.1}, weights())
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean `weight_decay`?")
    assert "betas" in caught.value.hint


def test_refused_value() -> None:
    with pytest.raises(ConfigError, match="AdamW refuses these values"):
        build_optimizer("torch.optim.AdamW", {"lr": -1.0}, weights())


LINEAR = {
    "name": "torch.optim.lr_scheduler.LinearLR",
    "kwargs": {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 4},
}
CONSTANT = {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 1000}}


def rates(spec: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(weights(), lr=1.0)
    scheduler = build_scheduler(spec, optimizer)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_schedule_list_with_milestones() -> None:
    expected = [0.1, 0.325, 0.55, 0.775, 1.0, 1.0, 1.0]
    assert rates([LINEAR, CONSTANT, {"milestones": [4]}], 7) == pytest.approx(expected)


def test_single_schedule_and_none() -> None:
    assert rates(LINEAR, 3) == pytest.approx([0.1, 0.325, 0.55])
    assert rates([LINEAR], 3) == pytest.approx([0.1, 0.325, 0.55])
    assert rates(None, 3) == [1.0, 1.0, 1.0]
    assert rates([], 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([LINEAR, CONSTANT], "2 schedules and 0 milestones"),
        ([LINEAR, CONSTANT, {"milestones": [4, 5]}], "2 schedules and 2 milestones"),
        ([LINEAR, CONSTANT, CONSTANT, {"milestones": [5, 4]}], "not increasing"),
        ([{"kwargs": {}}], r"`policy.scheduler\[0\]` has no `name`"),
        ([{**LINEAR, "kwargs": {"start": 1}}], r"`policy.scheduler\[0\].kwargs.start` is not an argument"),
        ([{**LINEAR, "kwargs": {"start_factor": 7.0}}], "refuses these values"),
        ({"name": "torch.optim.lr_scheduler.LinerLR"}, "can be used here"),
    ],
)
def test_schedule_mistakes(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rates(spec, 1)


def test_clip_and_step() -> None:
    parameters = weights()
    optimization = Optimization.build(
        parameters, optimizer={"name": "torch.optim.SGD", "kwargs": {"lr": 1.0}}, max_grad_norm=1.0
    )
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    assert optimization.clip_and_step() == pytest.approx(6.0)  # nine entries of 2: sqrt(9 * 4)
    torch.testing.assert_close(parameters[0], torch.full((2, 3), 1 - 2 / 6))
    assert parameters[0].grad is None


def test_no_step_on_a_gradient_that_is_not_finite() -> None:
    parameters = weights()
    optimization = Optimization.build(parameters, optimizer={"name": "torch.optim.SGD", "kwargs": {"lr": 1.0}})
    parameters[0].grad = torch.full((2, 3), math.nan)
    assert math.isnan(optimization.clip_and_step())
    assert (parameters[0] == 1).all()


def test_state_continues() -> None:
    def run(steps: int, optimization: Optimization, parameters: list[nn.Parameter]) -> None:
        for _ in range(steps):
            for p in parameters:
                p.grad = p.detach() * 0.3
            optimization.clip_and_step()
            optimization.step_scheduler()

    spec: dict[str, Any] = {
        "optimizer": {"name": "torch.optim.AdamW", "kwargs": {"lr": 0.1}},
        "scheduler": [LINEAR, CONSTANT, {"milestones": [4]}],
    }
    whole = weights()
    run(6, Optimization.build(whole, **spec), whole)
    half = weights()
    first = Optimization.build(half, **spec)
    run(3, first, half)
    second = Optimization.build(half, **spec)
    second.load_state_dict(first.state_dict())
    assert second.learning_rate == pytest.approx(0.0775)
    run(3, second, half)
    for a, b in zip(whole, half, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_a_schedule_that_ends_before_the_run_is_said() -> None:
    one = {"name": "torch.optim.lr_scheduler.OneCycleLR", "kwargs": {"max_lr": 0.1, "total_steps": 3}}
    sgd = {"name": "torch.optim.SGD", "kwargs": {"lr": 0.1}}
    optimization = Optimization.build(weights(), optimizer=sgd, scheduler=one)
    for _ in range(3):
        optimization.clip_and_step()
        optimization.step_scheduler()
    with pytest.raises(ConfigError, match="has ended before the run") as caught:
        optimization.step_scheduler()
    assert "`total_steps`" in str(caught.value.hint)
