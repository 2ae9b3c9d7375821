"""What TRL's sides of all comparisons share. Runs in TRL's venv."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers
import trl

from work import LEARNING_RATE, LORA_ALPHA, Asked, StepClock


def arguments(asked: Asked, output: str, batch: int) -> dict[str, Any]:
    """Settings that TRL's trainers share: one optimizer step of ``batch`` rows, no checkpoints, nothing logged."""
    return {
        "output_dir": output,
        "per_device_train_batch_size": batch,
        "learning_rate": LEARNING_RATE,
        "max_steps": asked.steps + 1,
        "bf16": asked.precision == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": asked.device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10_000,
        "disable_tqdm": True,
        "seed": 1,
    }


def model(asked: Asked) -> Any:
    """The model with float32 weights: in bfloat16 the trainer computes under autocast, as our side does."""
    return transformers.AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32)


def adapters(asked: Asked) -> Any:
    """What is trained in the place of all weights, or ``None``."""
    if not asked.lora:
        return None
    import peft

    return peft.LoraConfig(r=asked.lora, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def measure(asked: Asked, make: Callable[[str, Any], Any], tokens: Callable[[Any], int]) -> None:
    """Train, and print one JSON line.

    Args:
        make: the trainer, from a folder to write to and the callback that ticks at the end of every step.
        tokens: of all steps, from the trainer.
    """
    torch.set_num_threads(asked.threads)
    clock = StepClock()

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Ticks when the trainer says that a step has ended."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as output:
        trainer = make(output, Clock())
        clock.begin()
        trainer.train()
        versions = {one.__name__: one.__version__ for one in (trl, transformers, torch)}
        clock.report(tokens=tokens(trainer), device=asked.device, **versions)
