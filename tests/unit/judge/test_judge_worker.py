"""Shared prefixes and equal questions save work and change no text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemotron.judge.server import worker
from nemotron.judge.server.batching import Job, Written
from nemotron.judge.server.worker import decode, split_prompts
from nemotron.rl.policy import Policy

STOP = 1


@pytest.fixture(scope="module")
def policy(tiny_judge: Path) -> Policy:
    return Policy(Policy.load(tiny_judge, device="cpu").model.double())


def write(policy: Policy, jobs: list[Job]) -> dict[int, Written]:
    written: dict[int, Written] = {}
    decode(policy, jobs, [STOP], written.__setitem__)
    return written


def comparisons(groups: int, size: int, *, temperature: float = 0.0) -> list[Job]:
    """Prompts as a circle of comparisons makes them, in random order."""
    draw = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randrange(20, 260) for _ in range(draw.randint(low, high))]

    jobs = []
    for _ in range(groups):
        conversation, answers = tokens(15, 25), [tokens(3, 20) for _ in range(size)]
        for k in range(size):
            prompt = [*conversation, *answers[k], 5, *answers[(k + 1) % size], 6]
            jobs.append(Job(prompt, draw.randint(1, 12), temperature, 1.0, draw.randrange(2**40)))
    draw.shuffle(jobs)
    return jobs


def by_hand(policy: Policy, job: Job) -> list[int]:
    """Greedy decoding without cache, batch or sharing."""
    ids = list(job.prompt_ids)
    with torch.no_grad():
        while len(ids) - len(job.prompt_ids) < job.max_tokens and ids[-1] != STOP:
            ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return [token for token in ids[len(job.prompt_ids) :] if token != STOP]


def test_every_job_gets_the_text_it_would_get_alone(policy: Policy) -> None:
    jobs = [*comparisons(4, 5), Job([7] * 60, 6, 0.0, 1.0, 0), Job([9], 4, 0.0, 1.0, 0)]
    for some in (jobs, jobs[:-1]):  # the last one's single token forbids sharing
        written = write(policy, some)
        assert [written[k].token_ids for k in range(len(some))] == [by_hand(policy, job) for job in some]
        assert all(written[k].tokens == len(written[k].token_ids) + written[k].stopped for k in written)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_sharing_changes_no_text(policy: Policy, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = comparisons(3, 6, temperature=temperature)
    assert split_prompts([job.prompt_ids for job in jobs]) is not None
    shared = write(policy, jobs)
    monkeypatch.setattr(worker, "split_prompts", lambda prompts: None)
    plain = write(policy, jobs)
    assert {k: w.token_ids for k, w in shared.items()} == {k: w.token_ids for k, w in plain.items()}
    for k, one in shared.items():
        assert one.logprobs == pytest.approx(plain[k].logprobs, abs=1e-9)


def test_equal_questions_are_computed_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = worker.BatchState._forward

    def counting(state: worker.BatchState, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return forward(state, ids, mask)

    monkeypatch.setattr(worker.BatchState, "_forward", counting)
    greedy = write(policy, [Job([20, 30, 40], 3, 0.0, 1.0, seed) for seed in range(9)])
    assert max(sizes) == 1
    assert len(greedy) == 9
    assert len({tuple(w.token_ids) for w in greedy.values()}) == 1
    sampled = write(policy, [Job([20, 30, 40], 8, 1.0, 1.0, seed) for seed in range(9)])
    assert len({tuple(w.token_ids) for w in sampled.values()}) > 1


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=30), min_size=1, max_size=12)


@given(PROMPTS, st.integers(0, 25))
def test_a_split_loses_no_token(prompts: list[list[int]], common: int) -> None:
    prompts = [[9] * common + prompt for prompt in prompts]
    split = split_prompts(prompts)
    if split is None:
        return
    assert [split.prefixes[split.owner[k]] + split.rests[k] for k in range(len(prompts))] == prompts
    assert all(split.prefixes)
    assert all(split.rests)
    computed = sum(map(len, split.prefixes)) + sum(map(len, split.rests))
    assert computed <= 0.85 * sum(map(len, prompts))


def test_groups_behind_a_common_system_prompt_keep_their_own_prefixes() -> None:
    header = [3] * 10
    prompts = [[*header, *[group] * 20, 50 + k, 60 + k] for group in range(3) for k in range(6)]
    split = split_prompts(prompts)
    assert split is not None
    assert sorted(map(len, split.prefixes)) == [30, 30, 30]


def test_nothing_in_common_is_not_split() -> None:
    assert split_prompts([[k] * 20 for k in range(8)]) is None
    assert split_prompts([[1]]) is None
