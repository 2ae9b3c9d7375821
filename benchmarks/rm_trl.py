"""The other side of ``rm_vs_trl.py``: TRL's RewardTrainer, without gradient checkpointing. Runs in a venv of its own.

python rm_trl.py MODEL_FOLDER PRECISION STEPS THREADS
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from rm_work import LEARNING_RATE, PAIRS, StepClock, token_pairs


def main() -> None:
    """Train and print one JSON line."""
    folder, precision, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    import torch
    import transformers
    import trl
    from datasets import Dataset

    torch.set_num_threads(threads)
    clock = StepClock()

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Ticks when the trainer says that a step has ended."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    rows = [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for prompt, chosen, rejected in token_pairs(steps + 1)
    ]
    with tempfile.TemporaryDirectory() as output:
        args = trl.RewardConfig(
            output_dir=output,
            per_device_train_batch_size=PAIRS,
            learning_rate=LEARNING_RATE,
            max_length=None,
            max_steps=steps + 1,
            bf16=precision == "bfloat16",
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=10_000,
            disable_tqdm=True,
            seed=1,
        )
        trainer = trl.RewardTrainer(
            model=transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32
            ),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            callbacks=[Clock()],
        )
        clock.tick()
        clock.steps.clear()
        trainer.train()
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    clock.report(tokens=tokens, trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
