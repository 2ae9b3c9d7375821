"""One side of ``grpo_vs_trl.py``: this project's GRPO loop, as ``nemotron steps run`` runs it, with a judge that
costs nothing.

python grpo_ours.py MODEL_FOLDER PRECISION STEPS THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from grpo_work import (
    GENERATIONS,
    KL_PENALTY,
    LEARNING_RATE,
    NEW_TOKENS,
    PROMPT_TOKENS,
    PROMPTS,
    StepClock,
    prompts,
    reward,
)
from nemotron.rl.threads import apply_threads, set_environment


class Judge:
    """Answers at once."""

    def submit(self, request: Any, *, seed: int) -> Future[Any]:
        """See ``nemotron.judge.source.Judge``."""
        from nemotron.judge.types import GroupResult

        future: Future[Any] = Future()
        future.set_result(GroupResult([reward(response.answer) for response in request.responses], []))
        return future


class Recorder:
    """Notes when steps end and where their time went."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.phases: list[dict[str, float]] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``nemotron.rl.loops.recorder.Recorder``."""

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """See ``nemotron.rl.loops.recorder.Recorder``."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``nemotron.rl.loops.recorder.Recorder``."""
        lengths = (metrics["train/mean_prompt_length"], metrics["train/mean_gen_tokens_per_sample"])
        total = PROMPTS * GENERATIONS * (PROMPT_TOKENS + NEW_TOKENS)
        if lengths != (PROMPT_TOKENS, NEW_TOKENS) or metrics["train/total_num_tokens"] != total:
            raise SystemExit(f"not the agreed work: {lengths}, {metrics['train/total_num_tokens']} tokens")
        self.phases.append({k.split("/")[-1]: v for k, v in metrics.items() if k.startswith("timing/")})
        self.clock.tick()

    def checkpoint(self, path: Path) -> None:
        """See ``nemotron.rl.loops.recorder.Recorder``."""


def main() -> None:
    """Run the loop and print one JSON line."""
    folder, precision, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    set_environment(threads)
    import torch

    from nemotron.config.schema.extras import LimitsConfig
    from nemotron.config.schema.grpo import GrpoConfig, LossFnConfig, RewardScalingConfig, RewardShapingConfig
    from nemotron.contracts.samples import SamplingParams
    from nemotron.data.rows import PromptRow
    from nemotron.data.stream import PromptStream
    from nemotron.judge.source import JudgeSource
    from nemotron.rl.chat import Chat
    from nemotron.rl.loops.grpo import Grpo, train
    from nemotron.rl.optim import Optimization
    from nemotron.rl.policy import Policy
    from nemotron.rl.sampler import PolicySampler
    from nemotron.rl.saving import Progress

    apply_threads(threads)
    policy = Policy.load(folder, precision=precision, device="cpu")  # type: ignore[arg-type]
    rows = [
        PromptRow(f"{i}", [{"role": "user", "content": text}], None, {}) for i, text in enumerate(prompts(steps + 1))
    ]
    config = GrpoConfig(
        num_prompts_per_step=PROMPTS,
        num_generations_per_prompt=GENERATIONS,
        max_num_epochs=10,
        max_num_steps=steps + 1,
        max_rollout_turns=1,
        normalize_rewards=True,
        use_leave_one_out_baseline=False,
        use_dynamic_sampling=False,
        seq_logprob_error_threshold=None,
        reward_scaling=RewardScalingConfig(enabled=False),
        reward_shaping=RewardShapingConfig(enabled=False),
        seed=1,
        val_period=0,
        val_at_start=False,
        val_at_end=False,
        val_batch_size=None,
        max_val_samples=None,
    )
    recorder = Recorder()
    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": LEARNING_RATE}}
    job = Grpo(
        config=config,
        loss=LossFnConfig(reference_policy_kl_penalty=KL_PENALTY),
        limits=LimitsConfig(max_kl=None, max_missing_share=1.0),
        sampling=SamplingParams(NEW_TOKENS, ()),
        global_batch_size=PROMPTS * GENERATIONS,
        micro_batch_size=PROMPTS * GENERATIONS,
        logprob_batch_size=PROMPTS * GENERATIONS,
        save_period=None,
        policy=policy,
        sampler=PolicySampler(policy),
        reference=policy.frozen_copy(),
        optimization=Optimization.build(policy.parameters(), optimizer=adamw, max_grad_norm=1.0),
        chat=Chat.load(folder, None, None),
        rewards=JudgeSource(Judge()),
        stream=PromptStream(rows, PROMPTS, 1, True),
        validation=(),
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    train(job, Progress())
    names = recorder.phases[-1]
    means = {name: sum(phase[name] for phase in recorder.phases[1:]) / len(recorder.phases[1:]) for name in names}
    recorder.clock.report(phases=means, torch=torch.__version__)


if __name__ == "__main__":
    main()
