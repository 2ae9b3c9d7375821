"""`sampler.server=vllm`: the real vLLM samples with the weights of every step, as the policy itself would."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from nemotron.config.resolvers import ASSETS
from nemotron.contracts.samples import Group, SamplingParams
from nemotron.errors import EngineError
from nemotron.processes.vanishing import vanishing_folder
from nemotron.rl.policy import Policy
from nemotron.rl.vllm_sampler import NAME, VllmSampler, hand_over
from nemotron.vllm.arguments import Serve
from nemotron.vllm.server import VllmServer
from tests.integration.vllm_runs import (
    READY_S,
    RLHF,
    VENV,
    engine_of,
    finished,
    marked,
    nothing_is_left,
    rows,
    running,
    server_of,
    wait_for,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200), pytest.mark.usefixtures("vllm")]

POLICY = ASSETS / "tiny_world" / "policy"
SAMPLER = ("sampler.server=vllm", f"sampler.vllm_command={VENV}", "sampler.check_period=1")
QUICK = ("grpo.max_num_steps=4", "eval.heldout=null", "judge.probe.enabled=false")
PARAMS = SamplingParams(16, (2,))
LONG = 300
"""Tokens of a prompt that fills two blocks of vLLM's cache on a CPU."""


@pytest.fixture(scope="module")
def sampling() -> Iterator[tuple[Policy, VllmSampler]]:
    """The shipped policy, whose head is its embedding, and a vLLM that samples from it."""
    policy = Policy.load(POLICY, device="cpu")
    settings = {
        **{"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 32},
        **{"kv_cache_memory_bytes": 64 << 20, "generation_config": "vllm", "logprobs_mode": "processed_logprobs"},
    }
    variables = {"OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    with ExitStack() as stack:
        folder, at = stack.enter_context(vanishing_folder()), stack.enter_context(vanishing_folder()) / "vllm"
        hand_over(policy.model, folder)
        for path in POLICY.glob("tokenizer*"):
            (folder / path.name).write_bytes(path.read_bytes())
        serve = Serve(VENV / "bin" / "vllm", str(folder), NAME, settings, variables)
        server = stack.enter_context(
            VllmServer(
                "samples", serve, failure=EngineError, ready_timeout_s=READY_S, ready_key="-", max_restarts=1, at=at
            )
        )
        sampler = VllmSampler(
            policy, policy.model, server, folder=folder, at=at, longest=512, timeout_s=300, note=print
        )
        stack.enter_context(sampler)
        sampler.wait(print)
        yield policy, sampler


def changed(policy: Policy, seed: int) -> None:
    """As an optimizer step would, only more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1 + 0.2 * torch.randn(weight.shape, generator=generator))


def drawn(policy: Policy, sampler: VllmSampler, seed: int) -> tuple[list[Group], float]:
    """Groups of a short and a long prompt, and the largest difference of a log-probability to the policy's own."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.model.config.vocab_size
    prompts = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in (5, LONG)]
    seeds = [[seed * 100 + 10 * index + row for row in range(4)] for index in range(2)]
    groups = sampler.generate(prompts, 4, PARAMS, seeds)
    with torch.no_grad():
        own = policy.response_logprobs(groups)
    completions = [completion for group in groups for completion in group.completions]
    gaps = [
        (torch.tensor(completion.logprobs) - values[: len(completion.token_ids)]).abs().max()
        for completion, values in zip(completions, own, strict=True)
    ]
    return groups, float(torch.stack(gaps).max())


def test_log_probabilities_are_the_policys_after_every_refresh(sampling: tuple[Policy, VllmSampler]) -> None:
    policy, sampler = sampling
    sampler.refresh()
    first, gap = drawn(policy, sampler, 0)
    assert gap < 1e-3
    for round_ in range(1, 4):
        changed(policy, round_)
        groups, gap = drawn(policy, sampler, round_)
        assert gap > 0.01, "the weights have changed, so what is not refreshed must show"
        sampler.refresh()
        groups, gap = drawn(policy, sampler, round_)
        assert gap < 1e-3
    completions = [completion for group in groups for completion in group.completions]
    assert all(1 <= len(completion.token_ids) <= 16 for completion in completions)
    assert all(c.truncated is (c.token_ids[-1] != 2) for c in completions)
    # Equal seeds draw equal tokens, others others.
    assert [c.token_ids for group in drawn(policy, sampler, 3)[0] for c in group.completions] == [
        c.token_ids for c in completions
    ]
    assert len({tuple(c.token_ids) for c in completions}) > 2
    assert first != groups


def test_a_cache_that_is_kept_would_show(sampling: tuple[Policy, VllmSampler], monkeypatch: pytest.MonkeyPatch) -> None:
    """The long prompt does fill whole blocks: without forgetting them, its log-probabilities are of two models."""
    policy, sampler = sampling
    sampler.refresh()
    drawn(policy, sampler, 0)
    changed(policy, 1)

    async def kept(self: VllmSampler) -> None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr(VllmSampler, "forget", kept)
        sampler.refresh()
    assert drawn(policy, sampler, 1)[1] > 0.01
    sampler.refresh()
    assert drawn(policy, sampler, 1)[1] < 1e-3


def gaps(run: Path) -> list[float]:
    return [row["sampler/logprob_gap_max"] for row in rows(run) if "sampler/logprob_gap_max" in row]


ADAPTERS = ("policy.dtensor_cfg.enabled=true", "policy.dtensor_cfg.lora_cfg.enabled=true")


def moved(run: Path) -> bool:
    """Whether the policy has, so that agreeing with it says anything."""
    return bool([row["train/kl_penalty"] for row in rows(run) if "train/kl_penalty" in row][-1] > 1e-4)


def test_a_run_samples_by_it(tmp_path: Path, temporary: Path) -> None:
    run = finished(tmp_path, *RLHF, *SAMPLER, *QUICK, marked(tmp_path, "sampler"))
    assert len(gaps(run)) == 4
    assert max(gaps(run)) < 1e-3
    assert moved(run)
    nothing_is_left(tmp_path, temporary)


def test_one_that_is_killed_comes_back_with_the_newest_adapters(tmp_path: Path) -> None:
    more = ("grpo.max_num_steps=8", *QUICK[1:], *ADAPTERS, marked(tmp_path, "sampler"))
    with running(tmp_path, *RLHF, *SAMPLER, *more) as run:
        # It is looked for beforehand: a run does a step or two in the time that it takes to find it.
        wait_for(lambda: any(gaps(folder) for folder in tmp_path.iterdir()), READY_S, "no step")
        engine = engine_of(server_of(tmp_path))
        wait_for(lambda: any(len(gaps(folder)) > 2 for folder in tmp_path.iterdir()), READY_S, "no third step")
        os.kill(engine, signal.SIGKILL)
        said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    assert "started again (1 of 3)" in said
    [folder] = tmp_path.iterdir()
    assert len(gaps(folder)) == 8
    assert max(gaps(folder)) < 1e-3
    assert moved(folder)
    assert any(folder.glob("checkpoints/*/**/adapter_model.safetensors"))
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
