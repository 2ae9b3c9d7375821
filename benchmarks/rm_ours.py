"""One side of ``rm_vs_trl.py``: this project's reward model loop, as ``nemotron steps run`` runs it.

python rm_ours.py MODEL_FOLDER PRECISION STEPS THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron.rl.threads import apply_threads, set_environment
from rm_work import LEARNING_RATE, PAIRS, StepClock, token_pairs


class Recorder:
    """Notes when steps end."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``nemotron.rl.loops.reward_model.Recorder``."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """See ``nemotron.rl.loops.reward_model.Recorder``."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``nemotron.rl.loops.reward_model.Recorder``."""
        self.clock.tick()

    def checkpoint(self, path: Path) -> None:
        """See ``nemotron.rl.loops.reward_model.Recorder``."""


def main() -> None:
    """Run the loop and print one JSON line."""
    folder, precision, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    set_environment(threads)
    import torch

    from nemotron.config.schema.rm import RmConfig
    from nemotron.contracts.samples import Completion, Group
    from nemotron.data.stream import RowStream
    from nemotron.rl.chat import Chat
    from nemotron.rl.loops.reward_model import RewardTraining, train
    from nemotron.rl.optim import Optimization
    from nemotron.rl.policy import Policy
    from nemotron.rl.reward_pairs import RewardPair
    from nemotron.rl.saving import Progress
    from nemotron.rl.scalar_model import ScalarModel

    apply_threads(threads)
    policy = Policy.load(folder, precision=precision, device="cpu")  # type: ignore[arg-type]
    model = ScalarModel.from_policy(policy, seed=1)
    rows = [
        RewardPair(str(i), Group(prompt, [Completion(answer, [], truncated=False) for answer in answers]))
        for i, (prompt, *answers) in enumerate(token_pairs(steps + 1))
    ]
    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": LEARNING_RATE}}
    recorder = Recorder()
    job = RewardTraining(
        config=RmConfig(
            max_num_epochs=1,
            max_num_steps=-1,
            val_period=0,
            val_batches=-1,
            val_global_batch_size=PAIRS,
            val_micro_batch_size=PAIRS,
            val_at_start=False,
            val_at_end=False,
            seed=1,
        ),
        centring=0.0,
        global_batch_size=PAIRS,
        micro_batch_size=PAIRS,
        save_period=None,
        model=model,
        optimization=Optimization.build(model.parameters(), optimizer=adamw, max_grad_norm=1.0),
        chat=Chat.load(folder, None, None),
        stream=RowStream(rows, PAIRS, 1, True),
        validation={},
        statistics=[],
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.tick()
    recorder.clock.steps.clear()
    train(job, Progress())
    tokens = sum(sum(pair.row_lengths) for pair in rows)
    recorder.clock.report(tokens=tokens, torch=torch.__version__)


if __name__ == "__main__":
    main()
