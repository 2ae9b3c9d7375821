"""The other side of ``sft_vs_trl.py``: TRL's SFTTrainer, without gradient checkpointing. Runs in a venv of its own.

python sft_trl.py ASKED
"""

from __future__ import annotations

from typing import Any

import transformers
import trl
from datasets import Dataset

from sft_work import Sizes, rows
from trl_side import adapters, arguments, measure, model
from work import Asked


def main() -> None:
    """Train and print one JSON line."""
    asked = Asked.read()
    sizes = Sizes(**asked.sizes)

    def make(output: str, callback: Any) -> Any:
        return trl.SFTTrainer(
            model=model(asked),
            args=trl.SFTConfig(**arguments(asked, output, sizes.rows), max_length=None, completion_only_loss=True),
            train_dataset=Dataset.from_list(rows(asked, sizes)),
            processing_class=transformers.AutoTokenizer.from_pretrained(asked.model),
            peft_config=adapters(asked),
            callbacks=[callback],
        )

    measure(asked, make, lambda trainer: sum(len(row["input_ids"]) for row in trainer.train_dataset))


if __name__ == "__main__":
    main()
