"""The other side of ``dpo_vs_trl.py``: TRL's DPOTrainer, without gradient checkpointing. Runs in a venv of its own.

python dpo_trl.py MODEL_FOLDER PRECISION STEPS THREADS precompute|reference
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from dpo_work import BETA, LEARNING_RATE, PAIRS, StepClock, pairs


def main() -> None:
    """Train and print one JSON line."""
    folder, precision, steps, threads, variant = (
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5],
    )
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
        args = trl.DPOConfig(
            output_dir=output,
            per_device_train_batch_size=PAIRS,
            precompute_ref_log_probs=variant == "precompute",
            beta=BETA,
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
        trainer = trl.DPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=args,
            train_dataset=Dataset.from_list(pairs(steps + 1)),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            callbacks=[Clock()],
        )
        clock.tick()
        clock.steps.clear()
        trainer.train()
        ids = [len(row[key]) for row in trainer.train_dataset for key in ("prompt_ids", "chosen_ids", "rejected_ids")]
    clock.report(tokens=sum(ids), trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
