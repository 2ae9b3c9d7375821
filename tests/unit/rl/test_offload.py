"""Optimizer state in host memory: the bits of a run without, whatever the optimizer, and across checkpoints.

On a CPU both places are host memory, but the moves are made all the same: from one storage to another.
"""

from __future__ import annotations

import gc
import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nemotron.errors import EngineError
from nemotron.rl import offload
from nemotron.rl.offload import HostState, keep_on_host, tensors_of
from nemotron.rl.optim import Optimization, optimizer_names

SHAPES = ((5, 3), (7,), (1,), (2, 3, 4))
CASES = {
    "AdamW": {"lr": 0.1, "weight_decay": 0.01},
    "AdamW foreach": {"lr": 0.1, "foreach": True},
    "AdamW fused": {"lr": 0.1, "fused": True},
    "AdamW amsgrad": {"lr": 0.1, "amsgrad": True},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9},
    "Adafactor": {"lr": 0.1},
    **{name.rpartition(".")[2]: {"lr": 0.1} for name in optimizer_names() if not name.endswith((".AdamW", ".SGD"))},
}


def weights(case: str = "AdamW") -> list[nn.Parameter]:
    """Some not contiguous, of one element, and the last never with a gradient."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    made[0] = made[0].T.contiguous().T
    if case == "Muon":  # it takes matrices alone
        made = [made[0], torch.randn(4, 6, generator=generator), made[0].clone()]
    return [nn.Parameter(one) for one in made]


def build(case: str, parameters: list[nn.Parameter], *, away: bool) -> Optimization:
    name = f"torch.optim.{case.split()[0]}"
    schedule = {"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"total_iters": 5}}
    optimizer = {"name": name, "kwargs": CASES[case]}
    built = Optimization.build(parameters, optimizer=optimizer, scheduler=schedule, max_grad_norm=1.0)
    if away:
        HostState(built.optimizer)
    return built


def take(optimization: Optimization, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for i, parameter in enumerate(parameters[:-1]):
            generator = torch.Generator().manual_seed(100 * step + i)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimization.clip_and_step()
        optimization.step_scheduler()


def saved(optimization: Optimization) -> bytes:
    file = io.BytesIO()
    torch.save(optimization.state_dict(), file)
    return file.getvalue()


def places(optimization: Optimization) -> dict[tuple[int, str], int]:
    found = tensors_of(optimization.optimizer)
    return {(id(parameter), name): entry.data_ptr() for parameter, _, name, entry in found}


@pytest.mark.parametrize("case", CASES)
def test_steps_and_what_is_saved_are_those_of_state_that_stays(case: str) -> None:
    ours, theirs = weights(case), weights(case)
    away, stays = build(case, ours, away=True), build(case, theirs, away=False)
    for step in range(4):
        for optimization, parameters in ((away, ours), (stays, theirs)):
            take(optimization, parameters, range(step, step + 1))
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
        assert saved(away) == saved(stays)


def test_the_state_is_elsewhere_within_a_step_and_at_home_after_it() -> None:
    """The same numbers, in other memory; home is the same place after every step."""
    parameters = weights()
    optimization = build("AdamW", parameters, away=True)
    take(optimization, parameters, range(1))
    homes = places(optimization)
    assert len(homes) == 2 * (len(parameters) - 1)
    at_home = [entry.clone() for *_, entry in tensors_of(optimization.optimizer)]
    inside: list[tuple[dict[tuple[int, str], int], list[Tensor]]] = []

    def look(*call: Any) -> None:
        inside.append((places(optimization), [entry.clone() for *_, entry in tensors_of(optimization.optimizer)]))

    optimization.optimizer.register_step_pre_hook(look)
    take(optimization, parameters, range(1, 3))
    assert places(optimization) == homes
    assert len(inside) == 2
    for meanwhile, _ in inside:
        assert meanwhile.keys() == homes.keys()
        assert not set(meanwhile.values()) & set(homes.values())
    assert all(torch.equal(a, b) for a, b in zip(at_home, inside[0][1], strict=True))


def test_homes_are_one_piece_of_memory_and_a_saved_copy_is_not_part_of_it() -> None:
    parameters = weights()
    optimization = build("AdamW", parameters, away=True)
    take(optimization, parameters, range(2))
    storages = {entry.untyped_storage().data_ptr() for *_, entry in tensors_of(optimization.optimizer)}
    assert len(storages) == 1
    for state in optimization.state_dict()["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            storage = state[name].untyped_storage()
            assert storage.data_ptr() not in storages
            assert storage.nbytes() == state[name].numel() * 4


def test_step_counts_stay_where_torch_keeps_them() -> None:
    parameters = weights()
    optimization = build("AdamW", parameters, away=True)
    take(optimization, parameters, range(1))
    counts = [state["step"] for state in optimization.optimizer.state.values()]
    take(optimization, parameters, range(1, 3))
    found = [state["step"] for state in optimization.optimizer.state.values()]
    assert all(a is b for a, b in zip(counts, found, strict=True))
    assert [float(count) for count in found] == [3.0] * len(found)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("case", ["AdamW", "AdamW fused", "SGD momentum", "Adafactor"])
def test_a_resumed_run_has_the_same_bits_with_the_key_on_or_off(case: str, before: bool, after: bool) -> None:
    theirs = weights(case)
    stays = build(case, theirs, away=False)
    take(stays, theirs, range(6))
    ours = weights(case)
    first = build(case, ours, away=before)
    take(first, ours, range(3))
    file = saved(first)
    again = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    second = build(case, again, away=after)
    second.load_state_dict(torch.load(io.BytesIO(file), weights_only=True))
    assert saved(second) == file
    take(second, again, range(3, 6))
    for a, b in zip(again, theirs, strict=True):
        assert torch.equal(a, b)
    assert saved(second) == saved(stays)


def test_state_that_is_loaded_over_other_state_takes_its_place() -> None:
    """As after a run goes back to a checkpoint: nothing of what lay there remains."""
    parameters = weights()
    optimization = build("AdamW", parameters, away=True)
    take(optimization, parameters, range(2))
    early, homes = optimization.state_dict(), places(optimization)
    take(optimization, parameters, range(2, 4))
    optimization.load_state_dict(early)
    assert places(optimization) == homes
    for before, now in zip(early["optimizer"]["state"].values(), optimization.optimizer.state.values(), strict=True):
        assert torch.equal(before["exp_avg"], now["exp_avg"])


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    parameters = weights()
    optimization = build("AdamW", parameters, away=True)
    take(optimization, parameters, range(2))
    before, homes = saved(optimization), places(optimization)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, math.nan)
    assert not math.isfinite(optimization.clip_and_step())
    assert (saved(optimization), places(optimization)) == (before, homes)


def test_a_parameter_whose_first_gradient_comes_late_gets_a_home_then() -> None:
    ours, theirs = weights(), weights()
    away, stays = build("AdamW", ours, away=True), build("AdamW", theirs, away=False)
    for optimization, parameters in ((away, ours), (stays, theirs)):
        take(optimization, parameters, range(2))
        parameters[-1].grad = torch.ones_like(parameters[-1])
        take(optimization, parameters, range(2, 4))
    assert saved(away) == saved(stays)
    assert len(places(away)) == 2 * len(ours)


def test_a_step_that_fails_is_followed_by_one_that_finds_its_state() -> None:
    ours, theirs = weights(), weights()
    away, stays = build("AdamW", ours, away=True), build("AdamW", theirs, away=False)
    fails = [True]

    def fail(*call: Any) -> None:
        if fails:
            raise RuntimeError(fails.pop())

    for optimization, parameters in ((away, ours), (stays, theirs)):
        take(optimization, parameters, range(1))
    hook = away.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError):
        take(away, ours, range(1, 2))
    hook.remove()
    assert saved(away) == saved(stays)
    for optimization, parameters in ((away, ours), (stays, theirs)):
        take(optimization, parameters, range(1, 3))
    assert saved(away) == saved(stays)


def test_on_a_cpu_there_is_nothing_to_move() -> None:
    parameters = weights()
    adamw = torch.optim.AdamW(parameters)
    keep_on_host(adamw)
    assert not adamw._optimizer_step_pre_hooks
    assert not adamw._optimizer_step_post_hooks


def test_the_optimization_is_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "_is_elsewhere", lambda parameter: True)
    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": 0.1}}
    for wanted in (False, True):
        built = Optimization.build(weights(), optimizer=adamw, offload=wanted)
        assert bool(built.optimizer._optimizer_step_pre_hooks) is wanted


def pinning(answer: int) -> tuple[Callable[[], Any], list[tuple[str, int]]]:
    """A stand-in for CUDA's runtime, and what it is asked."""
    asked: list[tuple[str, int]] = []

    def register(address: int, size: int, flags: int) -> int:
        asked.append(("pin", size))
        return answer

    def unregister(address: int) -> int:
        asked.append(("unpin", address))
        return 0

    return lambda: SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister), asked


def test_room_is_pinned_as_large_as_it_is_and_unpinned_when_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, asked = pinning(0)
    monkeypatch.setattr(torch.cuda, "cudart", cuda)
    room: Tensor | None = offload._room(640, pinned=True)
    assert room is not None
    address = room.data_ptr()
    assert asked == [("pin", 640)]
    room = None
    assert asked == [("pin", 640), ("unpin", address)]


def test_memory_that_cannot_be_pinned_is_an_error_that_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, _ = pinning(2)
    monkeypatch.setattr(torch.cuda, "cudart", cuda)
    with pytest.raises(EngineError, match=r"cannot pin 0\.0 GiB") as caught:
        offload._room(640, pinned=True)
    assert "`policy.offload_optimizer_for_logprob=false`" in str(caught.value.hint)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ["AdamW", "AdamW foreach", "AdamW fused", "SGD momentum", "Adafactor"])
def test_on_a_gpu_the_state_is_gone_between_steps_and_the_bits_are_the_same(case: str) -> None:
    """What is allocated between steps is less by the moments; files are the same bytes and load either way."""
    held: dict[bool, int] = {}
    results: dict[bool, tuple[list[Tensor], bytes]] = {}
    for away in (False, True):
        torch.manual_seed(0)
        gc.collect()  # an optimizer and its schedule refer to each other
        before = torch.cuda.memory_allocated()
        parameters = [nn.Parameter(torch.randn(1024, 1024, device="cuda")) for _ in range(4)]
        optimizer = {"name": f"torch.optim.{case.split()[0]}", "kwargs": CASES[case]}
        optimization = Optimization.build(parameters, optimizer=optimizer, max_grad_norm=1.0, offload=away)
        for step in range(3):
            for i, parameter in enumerate(parameters):
                generator = torch.Generator(device="cuda").manual_seed(100 * step + i)
                parameter.grad = torch.randn(parameter.shape, generator=generator, device="cuda")
            optimization.clip_and_step()
        held[away] = torch.cuda.memory_allocated() - before
        results[away] = [parameter.detach().cpu() for parameter in parameters], saved(optimization)
        if away:
            entries = [entry for *_, entry in tensors_of(optimization.optimizer)]
            assert all(entry.device.type == "cpu" and entry.is_pinned() for entry in entries)
            moments = sum(entry.numel() * entry.element_size() for entry in entries)
            optimization.load_state_dict(torch.load(io.BytesIO(results[False][1]), weights_only=True))
            assert saved(optimization) == results[False][1]
        del parameters, optimization, parameter
    assert all(torch.equal(a, b) for a, b in zip(results[False][0], results[True][0], strict=True))
    assert results[False][1] == results[True][1]
    assert held[False] - held[True] == pytest.approx(moments, rel=0.05, abs=2**20)
