"""The other side of ``grpo_vs_trl.py``: TRL's GRPOTrainer, without gradient checkpointing. Runs in a venv of its own.

python grpo_trl.py ASKED
"""

from __future__ import annotations

from typing import Any

import transformers
import trl
from datasets import Dataset

from grpo_work import KL_PENALTY, Sizes, prompts, reward
from trl_side import adapters, arguments, measure, model
from work import Asked


def main() -> None:
    """Train and print one JSON line."""
    asked = Asked.read()
    sizes = Sizes(**asked.sizes)

    def rewards(completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        lengths = {len(ids) for ids in completion_ids}
        if lengths != {sizes.new_tokens} or len(completions) != sizes.samples:
            raise SystemExit(f"not the agreed work: {lengths}, {len(completions)} samples")
        return [reward(text) for text in completions]

    def make(output: str, callback: Any) -> Any:
        args = trl.GRPOConfig(
            **arguments(asked, output, sizes.samples),
            num_generations=sizes.generations,
            max_completion_length=sizes.new_tokens,
            generation_kwargs={"min_new_tokens": sizes.new_tokens},
            beta=KL_PENALTY,
        )
        return trl.GRPOTrainer(
            model=model(asked),
            reward_funcs=rewards,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(asked, sizes)]),
            processing_class=transformers.AutoTokenizer.from_pretrained(asked.model, padding_side="left"),
            peft_config=adapters(asked),
            callbacks=[callback],
        )

    def tokens(trainer: Any) -> int:
        lengths = {len(ids) for ids in trainer.processing_class(prompts(asked, sizes))["input_ids"]}
        if lengths != {sizes.prompt_tokens}:
            raise SystemExit(f"not the agreed work: prompts of {lengths} tokens")
        return sizes.tokens * (asked.steps + 1)

    measure(asked, make, tokens)


if __name__ == "__main__":
    main()
