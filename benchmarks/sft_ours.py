"""One side of ``sft_vs_trl.py``: this project's SFT loop, as ``nemotron steps run`` runs it.

python sft_ours.py MODEL_FOLDER PRECISION STEPS THREADS
"""

from __future__ import annotations

import sys

from dpo_ours import Recorder
from nemotron.rl.threads import apply_threads, set_environment
from sft_work import LEARNING_RATE, ROWS, rows


def main() -> None:
    """Run the loop and print one JSON line."""
    folder, precision, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    set_environment(threads)
    import torch

    from nemotron.config.schema.sft import SftConfig
    from nemotron.data.conversations import ConversationRow
    from nemotron.data.stream import RowStream
    from nemotron.rl.chat import Chat
    from nemotron.rl.conversations import Writing, tokenise
    from nemotron.rl.loops.sft import Sft, train
    from nemotron.rl.optim import Optimization
    from nemotron.rl.policy import Policy
    from nemotron.rl.saving import Progress

    apply_threads(threads)
    policy = Policy.load(folder, precision=precision, device="cpu")  # type: ignore[arg-type]
    work = [
        ConversationRow(
            str(i),
            [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}],
            (1,),
            {},
        )
        for i, row in enumerate(rows(steps + 1))
    ]
    found, _ = tokenise(work, Writing(Chat.load(folder, None, None)), limit=512)
    adamw = {"name": "torch.optim.AdamW", "kwargs": {"lr": LEARNING_RATE}}
    recorder = Recorder()
    job = Sft(
        config=SftConfig(max_num_steps=steps + 1, val_at_start=False, val_period=0, seed=1),
        global_batch_size=ROWS,
        micro_batch_size=ROWS,
        save_period=None,
        policy=policy,
        optimization=Optimization.build(policy.parameters(), optimizer=adamw, max_grad_norm=1.0),
        stream=RowStream(found, ROWS, 1, True),
        validation=[],
        saver=None,  # type: ignore[arg-type]  # no checkpoints
        recorder=recorder,
    )
    recorder.clock.tick()
    recorder.clock.steps.clear()
    train(job, Progress())
    recorder.clock.report(tokens=sum(row.length for row in found), torch=torch.__version__)


if __name__ == "__main__":
    main()
