"""One side of ``rm_vs_trl.py``: this project's reward model loop, as ``nemotron steps run`` runs it.

python rm_ours.py ASKED
"""

from __future__ import annotations

from dpo_work import Sizes
from ours_side import Recorder, asked, load, optimization
from rm_work import token_pairs


def main() -> None:
    """Run the loop and print one JSON line."""
    work = asked()
    sizes = Sizes(**work.sizes)
    import torch

    from nemotron.config.schema.rm import RmConfig
    from nemotron.contracts.samples import Completion, Group
    from nemotron.data.stream import RowStream
    from nemotron.rl.chat import Chat
    from nemotron.rl.loops.reward_model import RewardTraining, train
    from nemotron.rl.reward_pairs import RewardPair
    from nemotron.rl.saving import Progress
    from nemotron.rl.scalar_model import ScalarModel

    policy = load(work)
    model = ScalarModel.from_policy(policy, seed=1)
    rows = [
        RewardPair(str(i), Group(prompt, [Completion(answer, [], truncated=False) for answer in answers]))
        for i, (prompt, *answers) in enumerate(token_pairs(work, sizes))
    ]
    recorder = Recorder()
    job = RewardTraining(
        config=RmConfig(
            max_num_epochs=1,
            max_num_steps=-1,
            val_period=0,
            val_batches=-1,
            val_global_batch_size=sizes.pairs,
            val_micro_batch_size=sizes.pairs,
            val_at_start=False,
            val_at_end=False,
            seed=1,
        ),
        centring=0.0,
        global_batch_size=sizes.pairs,
        micro_batch_size=sizes.pairs,
        save_period=None,
        model=model,
        optimization=optimization(model.parameters()),
        chat=Chat.load(work.model, None, None),
        stream=RowStream(rows, sizes.pairs, 1, True),
        validation={},
        statistics=[],
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.begin()
    train(job, Progress())
    tokens = sum(sum(pair.row_lengths) for pair in rows)
    recorder.clock.report(tokens=tokens, device=work.device, torch=torch.__version__)


if __name__ == "__main__":
    main()
