"""The other side of ``sft_vs_trl.py``: TRL's SFTTrainer, without gradient checkpointing. Runs in a venv of its own.

python sft_trl.py MODEL_FOLDER PRECISION STEPS THREADS padded
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from sft_work import LEARNING_RATE, ROWS, StepClock, rows


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

    with tempfile.TemporaryDirectory() as output:
        args = trl.SFTConfig(
            output_dir=output,
            per_device_train_batch_size=ROWS,
            learning_rate=LEARNING_RATE,
            max_length=None,
            max_steps=steps + 1,
            bf16=precision == "bfloat16",
            gradient_checkpointing=False,
            completion_only_loss=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=10_000,
            disable_tqdm=True,
            seed=1,
        )
        trainer = trl.SFTTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list(rows(steps + 1)),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            callbacks=[Clock()],
        )
        clock.tick()
        clock.steps.clear()
        trainer.train()
        tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    clock.report(tokens=tokens, trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
