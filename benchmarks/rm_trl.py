"""The other side of ``rm_vs_trl.py``: TRL's RewardTrainer, without gradient checkpointing. Runs in a venv of its own.

python rm_trl.py ASKED
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
import trl
from datasets import Dataset

from dpo_work import Sizes
from rm_work import token_pairs
from trl_side import arguments, measure
from work import Asked


def main() -> None:
    """Train and print one JSON line."""
    asked = Asked.read()
    sizes = Sizes(**asked.sizes)
    rows = [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for prompt, chosen, rejected in token_pairs(asked, sizes)
    ]

    def make(output: str, callback: Any) -> Any:
        return trl.RewardTrainer(
            model=transformers.AutoModelForSequenceClassification.from_pretrained(
                asked.model, num_labels=1, dtype=torch.float32
            ),
            args=trl.RewardConfig(**arguments(asked, output, sizes.pairs), max_length=None),
            train_dataset=Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(asked.model),
            callbacks=[callback],
        )

    measure(asked, make, lambda trainer: sum(len(ids) for row in rows for ids in row.values()))


if __name__ == "__main__":
    main()
