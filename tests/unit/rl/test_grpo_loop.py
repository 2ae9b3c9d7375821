"""The loop with a small real policy and a judge that counts letters: it learns, stops at limits, and repeats itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nemotron.checkpoints.store import CheckpointStore, read_info
from nemotron.config.schema.extras import LimitsConfig
from nemotron.config.schema.grpo import GrpoConfig, LossFnConfig
from nemotron.contracts.sampler import OnGroup
from nemotron.contracts.samples import Group, SamplingParams
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.errors import EngineError, JudgeError, LimitError, OutOfTimeError
from nemotron.judge.source import JudgeSource
from nemotron.judge.types import Comparison, GroupRequest, GroupResult, Verdict
from nemotron.rl import kept_pass
from nemotron.rl.loops.grpo import Grpo, collect, train
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler
from nemotron.rl.sampler_check import SamplerCheck
from nemotron.rl.saving import Progress, Provenance, Saver, Trained, weights_of
from nemotron.rl.stopping import Deadline
from nemotron.rl.timing import Timings
from nemotron.runs.health import Bounds, Watch
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

HF_WEIGHTS = Path("policy", "weights", "hf")
ROWS = [PromptRow(f"rows:{i}", [{"role": "user", "content": word}], None, {}) for i, word in enumerate("abcdefgh")]
GRPO = {
    "num_prompts_per_step": 2,
    "num_generations_per_prompt": 4,
    "max_num_steps": 4,
    "max_num_epochs": 100,
    "max_rollout_turns": 1,
    "normalize_rewards": True,
    "use_leave_one_out_baseline": True,
    "use_dynamic_sampling": False,
    "reward_scaling": {"enabled": False},
    "reward_shaping": {"enabled": False},
    "seq_logprob_error_threshold": None,
    "seed": 1,
    "val_period": 0,
    "val_at_start": False,
    "val_at_end": False,
    "max_val_samples": None,
    "val_batch_size": None,
}


class LetterJudge:
    """Rewards the share of ``letters``; a verdict is missing for responses of odd number when ``broken``."""

    def __init__(self, broken: float = 0.0, constant: bool = False, letters: str = "z") -> None:
        self.broken, self.constant, self.letters = broken, constant, letters

    def submit(self, request: GroupRequest, *, seed: int) -> Future[GroupResult]:
        rewards: list[float | None] = []
        comparisons = []
        for i, response in enumerate(request.responses):
            missing = i < self.broken * len(request.responses)
            right = 0 if self.constant else sum(map(response.answer.count, self.letters))
            score = right / max(len(response.answer), 1)
            rewards.append(None if missing else score)
            verdict = None if missing else Verdict(score, 0.0, 1.0)
            comparisons.append(Comparison(i, 0, 0, verdict, 1, failure="garbage" if missing else None))
        future: Future[GroupResult] = Future()
        future.set_result(GroupResult(rewards, comparisons))
        return future


class Log:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.checkpoints: list[Path] = []
        self.kept: list[Any] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **metrics})

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        self.kept += rows

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, metrics)

    def checkpoint(self, path: Path) -> None:
        self.checkpoints.append(path)


def job(
    folder: Path,
    *,
    judge: LetterJudge | None = None,
    policy: Policy | None = None,
    lr: float = 0.02,
    save_hf: bool = False,
    **changes: Any,
) -> Grpo:
    limits = {"max_kl": None, "max_missing_share": 0.5, **changes.pop("limits", {})}
    loss = LossFnConfig(**{"reference_policy_kl_penalty": 0.01, **changes.pop("loss", {})})
    config = GrpoConfig(**{**GRPO, **changes})
    start = tiny_policy(scale=2.0)
    policy = policy or start
    rows = int(config.num_prompts_per_step * config.batch_multiplier)
    optimizer = {"name": "torch.optim.Adam", "kwargs": {"lr": lr}}
    optimization = Optimization.build(policy.parameters(), optimizer=optimizer)
    chat, stream = tiny_chat(), PromptStream(ROWS, rows, config.seed, True)
    return Grpo(
        config=config,
        loss=loss,
        limits=LimitsConfig(**limits),
        sampling=SamplingParams(max_new_tokens=8, stop_token_ids=(0,)),
        global_batch_size=config.num_prompts_per_step * config.num_generations_per_prompt,
        micro_batch_size=8,
        logprob_batch_size=8,
        save_period=2,
        policy=policy,
        sampler=PolicySampler(policy),
        reference=start.frozen_copy(),
        optimization=optimization,
        chat=chat,
        rewards=JudgeSource(judge or LetterJudge()),
        stream=stream,
        validation=ROWS[:3],
        saver=Saver(
            store=CheckpointStore(folder, None, None, True),
            tokenizer=chat.tokenizer,
            trained={"policy": Trained(policy.model, optimization)},
            stream=stream,
            provenance=lambda: Provenance(
                "rl/nemo_rl/rlhf", "a: 1\n", "f", [{"key": "policy.model_name", "path": "p", "sha256": "0"}]
            ),
            save_hf=save_hf,
        ),
        recorder=Log(),
    )


def log_of(done: Grpo) -> Log:
    assert isinstance(done.recorder, Log)
    return done.recorder


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_the_reward_rises(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=15, num_generations_per_prompt=8)
    train(work, Progress())
    rewards = [row["train/reward"] for row in log_of(work).rows]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


@pytest.mark.parametrize("kept", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kept:
        monkeypatch.setattr(kept_pass, "LARGE", 1)
    whole = job(tmp_path / "whole")
    end = train(whole, Progress())
    first = job(tmp_path / "parts", max_num_steps=2)
    train(first, Progress())
    checkpoint = tmp_path / "parts" / "step_2"
    second = job(tmp_path / "parts", policy=Policy.load_checkpoint(checkpoint))
    torch.manual_seed(99)  # a new process has another random state
    assert train(second, second.saver.load(checkpoint)) == end
    assert torch.equal(weights(whole.policy), weights(second.policy))
    assert log_of(whole).rows[2]["train/loss"] == log_of(second).rows[0]["train/loss"]


def passes_of(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes every pass of the policy over responses, and whether it was differentiable."""
    found: list[bool] = []
    own = policy.response_logprobs

    def noted(groups: Sequence[Group], **how: Any) -> torch.Tensor:
        found.append(torch.is_grad_enabled())
        return own(groups, **how)

    monkeypatch.setattr(policy, "response_logprobs", noted)
    return found


def test_training_goes_on_from_what_sampling_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept = job(tmp_path / "plain"), job(tmp_path / "kept")
    passes = passes_of(plain.policy, monkeypatch)
    train(plain, Progress())
    assert passes == [True] * 4
    monkeypatch.setattr(kept_pass, "LARGE", 1)
    passes = passes_of(kept.policy, monkeypatch)
    train(kept, Progress())
    assert passes == []
    torch.testing.assert_close(weights(kept.policy), weights(plain.policy), atol=1e-3, rtol=1e-3)
    for one, other in zip(log_of(kept).rows, log_of(plain).rows, strict=True):
        for name in ("train/loss", "train/grad_norm", "train/reward", "train/probs_ratio"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)
        assert one["train/gen_kl_error"] == 0.0


@pytest.mark.parametrize("change", ["micro-batches", "updates", "dynamic sampling", "error threshold", "inexact"])
def test_other_rollouts_go_through_the_policy_again(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_pass, "LARGE", 1)
    if change == "micro-batches":
        work = replace(job(tmp_path), micro_batch_size=4)
    elif change == "updates":
        work = replace(job(tmp_path), global_batch_size=4)
    elif change == "dynamic sampling":
        work = job(tmp_path, use_dynamic_sampling=True, dynamic_sampling_max_gen_batches=20)
    elif change == "error threshold":
        work = job(tmp_path, seq_logprob_error_threshold=1.5)
    else:
        work = sampled(tmp_path, 0.0)
    passes = passes_of(work.policy, monkeypatch)
    train(work, Progress())
    assert passes.count(True) == work.config.max_num_steps * (2 if change in ("micro-batches", "updates") else 1)


def test_checkpoint_has_nemo_rls_layout(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=3)
    train(work, Progress())
    assert log_of(work).checkpoints == [tmp_path / "step_2", tmp_path / "step_3"]
    names = {str(path.relative_to(tmp_path / "step_3")) for path in (tmp_path / "step_3").rglob("*") if path.is_file()}
    assert {
        "training_info.json",
        "config.yaml",
        "train_dataloader.pt",
        "policy/optimizer/optimizer.pt",
        "policy/weights/iter_0000000/metadata.json",
        "policy/weights/latest_checkpointed_iteration.txt",
        "policy/tokenizer/tokenizer.json",
    } <= names
    info = read_info(tmp_path / "step_3")
    assert info["total_steps"] == 3
    assert info["consumed_samples"] == 24
    assert "train:reward" in info


def test_weights_are_megatrons_and_hugging_faces_when_asked(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=2, save_hf=True)
    train(work, Progress())
    checkpoint = tmp_path / "step_2"
    record = json.loads((checkpoint / "policy" / "weights" / "nemotron_artifact.json").read_text())
    assert record["inputs"] == [{"key": "policy.model_name", "path": "p", "sha256": "0"}]
    for path in (weights_of(checkpoint), checkpoint / HF_WEIGHTS):
        assert torch.equal(weights(Policy.load_checkpoint(path)), weights(work.policy))


def test_a_family_without_megatron_form_is_saved_as_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=32, bos_token_id=0, eos_token_id=0, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    )
    no_kl = {"reference_policy_kl_penalty": 0.0}
    work = replace(job(tmp_path, max_num_steps=2, policy=Policy(model), loss=no_kl), reference=None)
    train(work, Progress())
    assert weights_of(tmp_path / "step_2") == tmp_path / "step_2" / HF_WEIGHTS
    assert torch.equal(weights(Policy.load_checkpoint(tmp_path / "step_2" / HF_WEIGHTS)), weights(work.policy))


def test_an_epoch_ends_the_run(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_epochs=1, max_num_steps=100)
    assert train(work, Progress()).step == len(ROWS) // 2


def test_missing_rewards_are_masked_and_counted(tmp_path: Path) -> None:
    work = job(tmp_path, judge=LetterJudge(broken=0.25), max_num_steps=1)
    train(work, Progress())
    [row] = log_of(work).rows
    assert row["train/missing_share"] == 0.25
    assert row["train/num_valid_samples"] == 6
    assert [row["reward"] is None for row in log_of(work).kept] == [True, False, False, False] * 2


def test_groups_without_signal_are_counted_and_may_stop_the_run(tmp_path: Path) -> None:
    """The checkpoint of the step that crosses the limit is there, and the next attempt would go on from it."""
    work = job(tmp_path, judge=LetterJudge(constant=True), max_num_steps=20, loss={"reference_policy_kl_penalty": 0.1})
    watched = replace(work, watch=Watch(Bounds(max_dead_groups=0.9)))
    with pytest.raises(LimitError, match=r"after step 10 by `limits.max_dead_groups`: 100% of the groups") as caught:
        train(watched, Progress())
    assert "grpo.use_dynamic_sampling" in str(caught.value.hint)
    assert [row["train/groups_without_signal"] for row in log_of(work).rows] == [1.0] * 10
    assert read_info(tmp_path / "step_10")["total_steps"] == 10
    alive = job(tmp_path / "alive", judge=LetterJudge(letters="abcdefghijklm"), max_num_steps=1)
    train(alive, Progress())
    assert log_of(alive).rows[0]["train/groups_without_signal"] < 1.0


def test_too_many_missing_rewards_stop_the_run(tmp_path: Path) -> None:
    work = job(tmp_path, judge=LetterJudge(broken=0.75))
    with pytest.raises(JudgeError, match=r"75% of the judge's verdicts in step 1 are missing.*garbage"):
        train(work, Progress())


def test_crossing_the_kl_limit_saves_and_stops(tmp_path: Path) -> None:
    work = job(tmp_path, limits={"max_kl": 1e-6}, lr=0.05)
    with pytest.raises(LimitError, match="in step 2"):
        train(work, Progress())
    assert log_of(work).checkpoints == [tmp_path / "step_2"]
    assert len(log_of(work).rows) == 2


def test_equal_rewards_leave_the_weights_to_the_kl_alone(tmp_path: Path) -> None:
    work = job(tmp_path, judge=LetterJudge(constant=True), loss={"reference_policy_kl_penalty": 0.0})
    before = weights(work.policy)
    train(work, Progress())
    assert torch.equal(before, weights(work.policy))


def test_dynamic_sampling_gives_up_when_nothing_differs(tmp_path: Path) -> None:
    work = job(
        tmp_path, judge=LetterJudge(constant=True), use_dynamic_sampling=True, dynamic_sampling_max_gen_batches=2
    )
    with pytest.raises(EngineError, match="dynamic sampling"):
        train(work, Progress())


def test_dynamic_sampling_trains_on_full_batches_of_differing_groups(tmp_path: Path) -> None:
    work = job(tmp_path, use_dynamic_sampling=True, dynamic_sampling_max_gen_batches=20, max_num_steps=3)
    train(work, Progress())
    log = log_of(work)
    assert len(log.kept) == 3 * 8
    samples = collect(work, 4, Timings()).samples
    for group in (samples[:4], samples[4:]):
        assert len({sample.source.id for sample in group}) == 1
        assert len({sample.unshaped for sample in group}) > 1
    assert max(row["train/dynamic_sampling_num_gen_batches"] for row in log.rows) >= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"adv_estimator": {"name": "reinforce_plus_plus"}, "loss": {"use_kl_in_reward": True}},
        {"overlong_filtering": True},
        {"seq_logprob_error_threshold": 2.0},
        {"reward_scaling": {"enabled": True, "target_min": -1.0}},
        {"loss": {"sequence_level_importance_ratios": True, "token_level_loss": False}},
        {"loss": {"use_cispo": True}},
        {"loss": {"force_on_policy_ratio": True}},
    ],
)
def test_variants_run_and_change_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    work = job(tmp_path, max_num_steps=2, **changes)
    before = weights(work.policy)
    train(work, Progress())
    after = weights(work.policy)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_top_k_and_top_p_train_on_the_filtered_distribution(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=2)
    filtered = SamplingParams(max_new_tokens=8, stop_token_ids=(0,), temperature=0.8, top_k=5, top_p=0.9)
    work = replace(work, sampling=filtered)
    train(work, Progress())
    for row in log_of(work).rows:
        assert row["train/token_mult_prob_error"] == pytest.approx(1.0, abs=1e-3)
        assert row["train/kl_penalty"] >= 0


def test_validation_runs_when_asked(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=4, val_period=2, val_at_start=True)
    train(work, Progress())
    steps = [row["step"] for row in log_of(work).rows if "validation/accuracy" in row]
    assert steps == [0, 2, 4]


def test_a_run_that_is_out_of_time_saves_and_goes_on_when_resumed(tmp_path: Path) -> None:
    work = replace(job(tmp_path / "parts", max_num_steps=2), deadline=Deadline(0.0))
    with pytest.raises(OutOfTimeError, match="after step 1"):
        train(work, Progress())
    assert [path.name for path in log_of(work).checkpoints] == ["step_1"]
    policy = Policy.load_checkpoint(weights_of(tmp_path / "parts" / "step_1"))
    again = replace(job(tmp_path / "parts", policy=policy, max_num_steps=2), deadline=Deadline(0.0))
    end = train(again, again.saver.load(tmp_path / "parts" / "step_1"))
    whole = job(tmp_path / "whole", max_num_steps=2)
    train(whole, Progress())
    assert end.step == 2
    assert torch.equal(weights(again.policy), weights(whole.policy))


def test_reward_minus_kl_and_clamped_rewards_are_reported(tmp_path: Path) -> None:
    scaling = {"enabled": True, "source_min": 0.0, "source_max": 0.2}
    work = job(tmp_path, max_num_steps=2, loss={"reference_policy_kl_penalty": 0.5}, reward_scaling=scaling, lr=0.05)
    train(work, Progress())
    for row in log_of(work).rows:
        expected = row["train/reward"] - 0.5 * row["train/kl_sum_per_response"]
        assert row["train/reward_minus_kl"] == pytest.approx(expected, abs=1e-5)
    last = log_of(work).rows[-1]
    assert last["train/kl_sum_per_response"] > 0
    rewards = [sample["reward"] for sample in log_of(work).kept[8:]]
    assert last["train/reward_clamped_share"] == sum(reward > 0.2 for reward in rewards) / 8
    plain = reported(tmp_path / "plain")
    assert "train/reward_clamped_share" not in plain
    # The names that charts and readers of `metrics.jsonl` look for.
    assert {"train/reward_std", "train/reward_length_correlation", "train/missing_share", "train/truncation_rate"} <= {
        *plain
    }


def reported(folder: Path) -> dict[str, float]:
    work = job(folder, max_num_steps=1)
    train(work, Progress())
    return log_of(work).rows[-1]


@dataclass
class Drifting(PolicySampler):
    """Samples as the policy, with log-probabilities that are off by so much from some refresh on."""

    policy: Policy
    off_by: float
    after: int = 0
    exact_logprobs = False

    def __post_init__(self) -> None:
        super().__init__(self.policy)
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1

    def generate(self, *args: Any, on_group: OnGroup | None = None, **more: Any) -> list[Group]:
        def off(group: Group) -> Group:
            by = self.off_by if self.refreshed >= self.after else 0.0
            rows = [replace(c, logprobs=[value - by for value in c.logprobs]) for c in group.completions]
            return replace(group, completions=rows)

        told = None if on_group is None else lambda index, group: on_group(index, off(group))
        return [off(group) for group in super().generate(*args, on_group=told, **more)]


def sampled(folder: Path, off_by: float, *, after: int = 0, period: int = 3, limit: float = 0.05) -> Grpo:
    work = job(folder, max_num_steps=7)
    sampler = Drifting(work.policy, off_by, after)
    return replace(work, sampler=sampler, check=SamplerCheck(period, limit))


def test_a_sampler_that_is_not_exact_is_compared_now_and_then(tmp_path: Path) -> None:
    work = sampled(tmp_path, 0.01)
    train(work, Progress())
    found = {
        int(row["step"]): row["sampler/logprob_gap_mean"]
        for row in log_of(work).rows
        if "sampler/logprob_gap_mean" in row
    }
    # The first, the first with weights that were handed over, then every third.
    assert list(found) == [1, 2, 3, 6]
    assert list(found.values()) == pytest.approx([0.01] * 4, abs=1e-5)
    assert all(row["sampler/logprob_gap_max"] < 0.0101 for row in log_of(work).rows if "sampler/logprob_gap_max" in row)


@pytest.mark.parametrize(("after", "step"), [(0, 1), (1, 2), (2, 3), (3, 6)])
def test_samples_of_other_weights_end_the_run_before_they_are_trained_on(tmp_path: Path, after: int, step: int) -> None:
    work = sampled(tmp_path, 0.5, after=after)
    with pytest.raises(LimitError, match=rf"0\.5 nats from the policy's in step {step}") as caught:
        train(work, Progress())
    assert "sampler.max_gap" in caught.value.message
    assert [row["step"] for row in log_of(work).rows if "train/loss" in row] == list(range(1, step))


def test_an_exact_sampler_costs_no_comparison(tmp_path: Path) -> None:
    work = job(tmp_path)
    train(work, Progress())
    assert not any(name.startswith("sampler/") for row in log_of(work).rows for name in row)
