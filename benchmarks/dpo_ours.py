"""One side of ``dpo_vs_trl.py``: this project's DPO loop, as ``nemotron steps run`` runs it.

python dpo_ours.py ASKED
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from dpo_work import BETA, Sizes, pairs
from ours_side import Recorder, asked, load, optimization


def main() -> None:
    """Run the loop and print one JSON line."""
    work = asked()
    sizes = Sizes(**work.sizes)
    import torch

    from nemotron.config.schema.dpo import DpoConfig
    from nemotron.data.rows import PairRow
    from nemotron.data.stream import RowStream
    from nemotron.rl.chat import Chat
    from nemotron.rl.loops.dpo import Dpo, train
    from nemotron.rl.pairs import tokenise
    from nemotron.rl.reference_cache import ReferenceCache
    from nemotron.rl.saving import Progress

    policy = load(work)
    rows = [
        PairRow(str(i), [{"role": "user", "content": pair["prompt"]}], pair["chosen"], pair["rejected"], {})
        for i, pair in enumerate(pairs(work, sizes))
    ]
    tokenised, _ = tokenise(rows, Chat.load(work.model, None, None), limit=2048)
    groups = [pair.group for pair in tokenised]
    tokens = sum(len(g.prompt_ids) + sum(len(c.token_ids) for c in g.completions) for g in groups)
    with tempfile.TemporaryDirectory() as cache:
        # Not trained yet, and fresh adapters add nothing: the policy is its own reference.
        ready = ReferenceCache(Path(cache), "", lambda: policy, sizes.pairs, report=lambda text: None).fill(
            "train", tokenised
        )
    recorder = Recorder()
    job = Dpo(
        config=DpoConfig(
            reference_policy_kl_penalty=BETA, max_num_steps=work.steps + 1, val_at_start=False, val_period=0, seed=1
        ),
        global_batch_size=sizes.pairs,
        micro_batch_size=sizes.pairs,
        save_period=None,
        policy=policy,
        optimization=optimization(policy.parameters()),
        stream=RowStream(ready, sizes.pairs, 1, True),
        validation={},
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.begin()
    train(job, Progress())
    recorder.clock.report(tokens=tokens, device=work.device, torch=torch.__version__)


if __name__ == "__main__":
    main()
