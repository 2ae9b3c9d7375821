"""The other side of ``dpo_vs_trl.py``: TRL's DPOTrainer, without gradient checkpointing. Runs in a venv of its own.

python dpo_trl.py ASKED, its variant ``precompute`` or ``reference``
"""

from __future__ import annotations

from typing import Any

import transformers
import trl
from datasets import Dataset

from dpo_work import BETA, Sizes, pairs
from trl_side import adapters, arguments, measure, model
from work import Asked


def main() -> None:
    """Train and print one JSON line."""
    asked = Asked.read()
    sizes = Sizes(**asked.sizes)

    def make(output: str, callback: Any) -> Any:
        args = trl.DPOConfig(
            **arguments(asked, output, sizes.pairs),
            precompute_ref_log_probs=asked.variant == "precompute",
            beta=BETA,
            max_length=None,
        )
        return trl.DPOTrainer(
            model=model(asked),
            args=args,
            train_dataset=Dataset.from_list(pairs(asked, sizes)),
            processing_class=transformers.AutoTokenizer.from_pretrained(asked.model),
            peft_config=adapters(asked),
            callbacks=[callback],
        )

    def tokens(trainer: Any) -> int:
        keys = ("prompt_ids", "chosen_ids", "rejected_ids")
        return sum(len(row[key]) for row in trainer.train_dataset for key in keys)

    measure(asked, make, tokens)


if __name__ == "__main__":
    main()
