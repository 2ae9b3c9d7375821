"""Probabilities of one token: those of the model, and the same bits whatever is asked beside them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nemotron.judge.server.batching import Job, Written
from nemotron.judge.server.constraint import Constraint
from nemotron.judge.server.reading import PIECE, read
from nemotron.rl.policy import Policy

STOP = 1


@pytest.fixture(scope="module")
def policy(tiny_judge: Path) -> Policy:
    # Float32, where what shares a batch changes the last bits.
    return Policy.load(tiny_judge, device="cpu")


def reading(policy: Policy, jobs: list[Job]) -> dict[int, Written]:
    found: dict[int, Written] = {}
    read(policy, jobs, [STOP], found.__setitem__)
    return found


def questions() -> list[Job]:
    """Pairs of questions with long common beginnings, as two scores of a comparison make them, and lonely ones."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(20, 260) for _ in range(count)]

    prompts = []
    for length in (3 * PIECE + 7, 2 * PIECE - 1, 2 * PIECE, PIECE + 1, 5):
        common = tokens(length)
        prompts += [[*common, 30 + k, 9, 8] for k in range(2)]
        prompts += [[*common[: length // 2], *tokens(20)]]
    return [Job(prompt, 1, 0.0, 1.0, 0, None, 5) for prompt in prompts]


def test_the_bits_do_not_depend_on_what_is_asked_beside(policy: Policy) -> None:
    jobs = questions()
    alone = [reading(policy, [job])[0] for job in jobs]
    for seed in range(4):
        order = list(range(len(jobs)))
        random.Random(seed).shuffle(order)
        part = order[: len(order) - seed * 3]
        together = reading(policy, [jobs[index] for index in part])
        assert [together[place].top for place in range(len(part))] == [alone[index].top for index in part]


def test_they_are_the_model_s_own(policy: Policy) -> None:
    jobs = questions()
    found = reading(policy, jobs)
    for place, job in enumerate(jobs):
        with torch.no_grad():
            expected = policy.model(torch.tensor([job.prompt_ids])).logits[0, -1].log_softmax(-1)
        values, ids = expected.topk(5)
        (top,) = found[place].top
        assert [token for token, _ in top] == ids.tolist()
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-5)
        assert found[place].token_ids == [ids[0].item()]
        assert found[place].tokens == 1


def test_held_to_choices_only_these_have_probabilities(policy: Policy) -> None:
    constraint = Constraint([("4", "5")], {70: "4", 71: "5", 72: "6"})
    (job, *_) = questions()
    (found,) = reading(policy, [Job(job.prompt_ids, 1, 0.0, 1.0, 0, constraint, 5)]).values()
    ((first, second),) = found.top
    assert {first[0], second[0]} == {70, 71}
    assert torch.tensor([first[1], second[1]]).exp().sum().item() == pytest.approx(1.0)


def test_equal_questions_are_computed_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemotron.judge.server import worker

    calls = []
    forward = worker.BatchState._forward

    def counting(state: worker.BatchState, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls.append(ids.shape[1])
        return forward(state, ids, mask)

    monkeypatch.setattr(worker.BatchState, "_forward", counting)
    job = questions()[0]
    found = reading(policy, [job] * 6)
    assert len(found) == 6
    assert calls == [PIECE, PIECE, PIECE, len(job.prompt_ids) - 3 * PIECE]
