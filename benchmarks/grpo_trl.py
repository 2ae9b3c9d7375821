"""The other side of ``grpo_vs_trl.py``: TRL's GRPOTrainer, without gradient checkpointing. Runs in a venv of its own.

python grpo_trl.py MODEL_FOLDER PRECISION STEPS THREADS
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from grpo_work import GENERATIONS, KL_PENALTY, LEARNING_RATE, NEW_TOKENS, PROMPTS, StepClock, prompts, reward


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

    def rewards(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        lengths = {len(ids) for ids in completion_ids}
        if lengths != {NEW_TOKENS} or len(completions) != PROMPTS * GENERATIONS:
            raise SystemExit(f"not the agreed work: {lengths}, {len(completions)} samples")
        return [reward(text) for text in completions]

    with tempfile.TemporaryDirectory() as output:
        args = trl.GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=PROMPTS * GENERATIONS,
            num_generations=GENERATIONS,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            beta=KL_PENALTY,
            learning_rate=LEARNING_RATE,
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
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(steps + 1)]),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder, padding_side="left"),
            callbacks=[Clock()],
        )
        trainer.train()
    clock.report(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)


if __name__ == "__main__":
    main()
