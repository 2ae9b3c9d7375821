"""What a person sees after mistakes with the two sides of PPO, whole: exit code, stdout, stderr."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from syrupy.assertion import SnapshotAssertion

APART = "checkpointing.checkpoint_dir=shared"


@pytest.mark.parametrize(
    "words",
    [
        "rlhf -c tiny --only critic",
        "ppo -c tiny --only judge",
        "ppo -c tiny --only",
        f"ppo -c tiny --only critic {APART}",
        f"ppo -c tiny --only actor {APART}",
        "ppo -c tiny --only actor critic.address=host critic.token=abcdefgh",
        "ppo -c tiny only=actor --only critic",
        "ppo -c tiny reward_model.model_name=nowhere/at/all",
        "ppo -c tiny ppo.adv_estimator.name=grpo",
        "ppo -c tiny ppo.adv_estimator.gae_lambda=1.5",
        "ppo -c tiny critic.port=99999",
        "ppo -c tiny -- --only critic",
    ],
)
def test_mistakes(run: Callable[..., str], snapshot: SnapshotAssertion, words: str) -> None:
    step, *rest = words.split()
    assert run("steps", "run", step, *rest, *(() if "--" in rest else ("--dry-run",))) == snapshot
