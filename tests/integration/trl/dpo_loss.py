"""Runs in TRL's venv: the loss of DPOTrainer on one batch, and its gradient.

python dpo_loss.py POLICY REFERENCE PAIRS.jsonl BETA [precompute]   (pairs in TRL's conversational form)
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Print one JSON line."""
    policy, reference, pairs, beta = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as output:
        trainer = trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32),
            ref_model=AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
            args=trl.DPOConfig(
                output_dir=output,
                per_device_train_batch_size=len(rows),
                beta=beta,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                max_length=None,
                disable_dropout=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(policy),
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        grads = {name: p.grad.norm().item() for name, p in trainer.model.named_parameters() if p.grad is not None}
    print(json.dumps({"loss": loss.item(), "gradient_norms": grads, "trl": trl.__version__}))


if __name__ == "__main__":
    main()
