"""One side of ``dpo_vs_trl.py``: this project's DPO loop, as ``nemotron steps run`` runs it.

python dpo_ours.py MODEL_FOLDER PRECISION STEPS THREADS
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpo_work import BETA, LEARNING_RATE, PAIRS, StepClock, pairs
from nemotron.rl.threads import apply_threads, set_environment


class Recorder:
    """Notes when steps end."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``nemotron.rl.loops.dpo.Recorder``."""

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """See ``nemotron.rl.loops.dpo.Recorder``."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """See ``nemotron.rl.loops.dpo.Recorder``."""
        self.clock.tick()

    def checkpoint(self, path: Path) -> None:
        """See ``nemotron.rl.loops.dpo.Recorder``."""


def main() -> None:
    """Run the loop and print one JSON line."""
    folder, precision, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    set_environment(threads)
    import torch

    from nemotron.config.schema.dpo import DpoConfig
    from nemotron.data.rows import PairRow
    from nemotron.data.stream import RowStream
    from nemotron.rl.chat import Chat
    from nemotron.rl.loops.dpo import Dpo, train
    from nemotron.rl.optim import Optimization
    from nemotron.rl.pairs import tokenise
    from nemotron.rl.policy import Policy
    from nemotron.rl.reference_cache import ReferenceCache
    from nemotron.rl.saving import Progress

    apply_threads(threads)
    policy = Policy.load(folder, precision=precision, device="cpu")  # type: ignore[arg-type]
    rows = [
        PairRow(str(i), [{"role": "user", "content": pair["prompt"]}], pair["chosen"], pair["rejected"], {})
        for i, pair in enumerate(pairs(steps + 1))
    ]
    tokenised, _ = tokenise(rows, Chat.load(folder, None, None), limit=512)
    groups = [pair.group for pair in tokenised]
    tokens = sum(len(g.prompt_ids) + sum(len(c.token_ids) for c in g.completions) for g in groups)
    with tempfile.TemporaryDirectory() as cache:
        reference = ReferenceCache(Path(cache), "", lambda: policy, PAIRS, report=lambda text: None)
        ready = reference.fill("train", tokenised)
    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": LEARNING_RATE}}
    recorder = Recorder()
    job = Dpo(
        config=DpoConfig(
            reference_policy_kl_penalty=BETA, max_num_steps=steps + 1, val_at_start=False, val_period=0, seed=1
        ),
        global_batch_size=PAIRS,
        micro_batch_size=PAIRS,
        save_period=None,
        policy=policy,
        optimization=Optimization.build(policy.parameters(), optimizer=adamw, max_grad_norm=1.0),
        stream=RowStream(ready, PAIRS, 1, True),
        validation={},
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.tick()
    recorder.clock.steps.clear()
    train(job, Progress())
    recorder.clock.report(tokens=tokens, torch=torch.__version__)


if __name__ == "__main__":
    main()
