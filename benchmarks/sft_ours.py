"""One side of ``sft_vs_trl.py``: this project's SFT loop, as ``nemotron steps run`` runs it.

python sft_ours.py ASKED
"""

from __future__ import annotations

from ours_side import Recorder, asked, load, optimization
from sft_work import Sizes, rows


def main() -> None:
    """Run the loop and print one JSON line."""
    work = asked()
    sizes = Sizes(**work.sizes)
    import torch

    from nemotron.config.schema.sft import SftConfig
    from nemotron.data.conversations import ConversationRow
    from nemotron.data.stream import RowStream
    from nemotron.rl.chat import Chat
    from nemotron.rl.conversations import Writing, tokenise
    from nemotron.rl.loops.sft import Sft, train
    from nemotron.rl.saving import Progress

    policy = load(work)
    conversations = [
        ConversationRow(
            str(i),
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
            (1,),
            {},
        )
        for i, row in enumerate(rows(work, sizes))
    ]
    found, _ = tokenise(conversations, Writing(Chat.load(work.model, None, None)), limit=2048)
    recorder = Recorder()
    job = Sft(
        config=SftConfig(max_num_steps=work.steps + 1, val_at_start=False, val_period=0, seed=1),
        global_batch_size=sizes.rows,
        micro_batch_size=sizes.rows,
        save_period=None,
        policy=policy,
        optimization=optimization(policy.parameters()),
        stream=RowStream(found, sizes.rows, 1, True),
        validation=[],
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.begin()
    train(job, Progress())
    recorder.clock.report(tokens=sum(row.length for row in found), device=work.device, torch=torch.__version__)


if __name__ == "__main__":
    main()
