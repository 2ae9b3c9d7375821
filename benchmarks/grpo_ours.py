"""One side of ``grpo_vs_trl.py``: this project's GRPO loop, as ``nemotron steps run`` runs it, with a judge that
costs nothing.

python grpo_ours.py ASKED
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from grpo_work import KL_PENALTY, Sizes, prompts, reward
from ours_side import Recorder, asked, load, optimization, reference


class Judge:
    """Answers at once."""

    def submit(self, request: Any, *, seed: int) -> Future[Any]:
        """See ``nemotron.judge.source.Judge``."""
        from nemotron.judge.types import GroupResult

        future: Future[Any] = Future()
        future.set_result(GroupResult([reward(response.answer) for response in request.responses], []))
        return future


def main() -> None:
    """Run the loop and print one JSON line."""
    work = asked()
    sizes = Sizes(**work.sizes)
    import torch

    from nemotron.config.schema.extras import LimitsConfig
    from nemotron.config.schema.grpo import GrpoConfig, LossFnConfig, RewardScalingConfig, RewardShapingConfig
    from nemotron.contracts.samples import SamplingParams
    from nemotron.data.rows import PromptRow
    from nemotron.data.stream import PromptStream
    from nemotron.judge.source import JudgeSource
    from nemotron.rl.chat import Chat
    from nemotron.rl.loops.grpo import Grpo, train
    from nemotron.rl.sampler import PolicySampler
    from nemotron.rl.saving import Progress

    def check(metrics: Mapping[str, float]) -> None:
        lengths = (metrics["train/mean_prompt_length"], metrics["train/mean_gen_tokens_per_sample"])
        if lengths != (sizes.prompt_tokens, sizes.new_tokens) or metrics["train/total_num_tokens"] != sizes.tokens:
            raise SystemExit(f"not the agreed work: {lengths}, {metrics['train/total_num_tokens']} tokens")
        phases.append({k.split("/")[-1]: v for k, v in metrics.items() if k.startswith("timing/")})

    phases: list[dict[str, float]] = []
    policy = load(work)
    rows = [
        PromptRow(f"{i}", [{"role": "user", "content": text}], None, {}) for i, text in enumerate(prompts(work, sizes))
    ]
    config = GrpoConfig(
        num_prompts_per_step=sizes.prompts,
        num_generations_per_prompt=sizes.generations,
        max_num_epochs=10,
        max_num_steps=work.steps + 1,
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
    recorder = Recorder(check)
    job = Grpo(
        config=config,
        loss=LossFnConfig(reference_policy_kl_penalty=KL_PENALTY),
        limits=LimitsConfig(max_kl=None, max_missing_share=1.0),
        sampling=SamplingParams(sizes.new_tokens, ()),
        global_batch_size=sizes.samples,
        micro_batch_size=sizes.samples,
        logprob_batch_size=sizes.samples,
        save_period=None,
        policy=policy,
        sampler=PolicySampler(policy),
        reference=reference(policy, work),
        optimization=optimization(policy.parameters()),
        chat=Chat.load(work.model, None, None),
        rewards=JudgeSource(Judge()),
        stream=PromptStream(rows, sizes.prompts, 1, True),
        validation=(),
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.begin()
    train(job, Progress())
    means = {name: sum(phase[name] for phase in phases[1:]) / len(phases[1:]) for name in phases[-1]}
    recorder.clock.report(
        tokens=sizes.tokens * (work.steps + 1), device=work.device, phases=means, torch=torch.__version__
    )


if __name__ == "__main__":
    main()
