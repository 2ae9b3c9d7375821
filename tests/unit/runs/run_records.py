"""What an engine writes into a run folder."""

from __future__ import annotations

from collections.abc import Callable

from nemotron.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]


def fill(run: RunFolder, steps: int = 6) -> RunFolder:
    """Write the records of a whole run: metrics, held-out answers before and after, training samples, status."""
    names = ("right_intent", "polite", "fully_right")

    def heldout(phase: str, step: int, right: bool) -> None:
        run.append_samples(
            {
                "step": step,
                "phase": phase,
                "row_id": row,
                "prompt": f"question {row}",
                "response": f"{phase} answer {row}",
                "reward": None,
                "advantage": None,
                "truncated": False,
                "verdict": dict.fromkeys(names, right and row != 2),
            }
            for row in range(4)
        )

    run.write_status(state="running", steps_total=steps, heldout_before=dict.fromkeys(names, 0.25))
    heldout("heldout_before", 0, False)
    for step in range(1, steps + 1):
        run.append_metrics(
            {
                "step": step,
                "wall_s": 0.5 * step,
                "train/reward": 3 + 0.1 * step,
                "train/reward_std": 1.0,
                "train/kl_penalty": 0.01 * step,
                "train/mean_gen_tokens_per_sample": 30 - step,
                "train/truncation_rate": 0.1,
                "train/missing_share": 0.0,
                "train/clip_fraction": 0.01,
                "train/probs_ratio": 1.0,
                "train/grad_norm": 1.5,
                "train/lr": 1e-3,
                "judge/tie_share": 0.2,
                "judge/first_position_share": 0.5,
                "timing/train/generation": 0.2,
                "timing/train/policy_training": 0.2,
                "timing/train/total_step_time": 0.5,
            }
        )
        run.append_samples(
            {
                "step": step,
                "phase": "train",
                "row_id": row,
                "prompt": f"train question {row}",
                "response": f"step {step} answer {row}",
                "reward": float(row),
                "advantage": row - 1.5,
                "truncated": row == 3,
                "verdict": {"ranking": 3},
            }
            for row in range(4)
        )
    heldout("heldout_after", steps, True)
    (run.checkpoints / f"step_{steps}").mkdir()
    run.write_status(
        state="finished",
        steps_done=steps,
        wall_s=0.5 * steps,
        heldout_after=dict.fromkeys(names, 0.75),
        checkpoint=f"checkpoints/step_{steps}",
        exit_code=0,
    )
    return run
