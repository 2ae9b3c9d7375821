"""Runs in TRL's venv: the loss of SFTTrainer on one batch, and its gradient.

python sft_loss.py POLICY ROWS.jsonl   (rows in TRL's conversational form: prompt and completion)
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Print one JSON line."""
    policy, data = sys.argv[1], Path(sys.argv[2])
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as output:
        trainer = trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            args=trl.SFTConfig(
                output_dir=output,
                per_device_train_batch_size=len(rows),
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                max_length=None,
                completion_only_loss=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(policy),
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        grads = {name: p.grad.norm().item() for name, p in trainer.model.named_parameters() if p.grad is not None}
        tokens = int((batch["labels"] != -100).sum())
    print(json.dumps({"loss": loss.item(), "tokens": tokens, "gradient_norms": grads, "trl": trl.__version__}))


if __name__ == "__main__":
    main()
