"""Runs in TRL's venv: the loss of RewardTrainer on one batch, and its gradient.

python reward_model_loss.py MODEL PAIRS.jsonl CENTRING   (pairs in TRL's conversational form, with a margin or without)
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Print one JSON line."""
    model, pairs, centring = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as output:
        trainer = trl.RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32),
            args=trl.RewardConfig(
                output_dir=output,
                per_device_train_batch_size=len(rows),
                center_rewards_coefficient=centring or None,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                max_length=None,
                disable_dropout=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        grads = {name: p.grad.norm().item() for name, p in trainer.model.named_parameters() if p.grad is not None}
    print(json.dumps({"loss": loss.item(), "gradient_norms": grads, "trl": trl.__version__}))


if __name__ == "__main__":
    main()
