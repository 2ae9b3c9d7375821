"""The work both sides of ``grpo_vs_trl.py`` do, and how a side reports its time. Imports nothing but the standard
library."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

PROMPTS, GENERATIONS, PROMPT_TOKENS, NEW_TOKENS = 16, 8, 33, 64
VOCABULARY, KL_PENALTY, LEARNING_RATE = 512, 0.04, 1e-5
SHAPES = {
    "m1": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "m15": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1792},
}


def prompts(steps: int) -> list[str]:
    """Prompts of exactly ``PROMPT_TOKENS`` tokens for so many steps, the same on both sides."""
    source = random.Random(0)
    words = [f"w{i}" for i in range(VOCABULARY - 3)]
    return [" ".join(source.choices(words, k=PROMPT_TOKENS)) for _ in range(PROMPTS * steps)]


def reward(text: str) -> float:
    """A reward that costs nothing: the share of words that end in 7."""
    words = text.split()
    return sum(word.endswith("7") for word in words) / max(len(words), 1)


def make_model(folder: Path, shape: str) -> None:
    """Write a random Llama and a tokenizer of one token a word. Imports transformers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **SHAPES[shape],
    )
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


class StepClock:
    """Wall seconds and CPU seconds from the end of one step to the end of the next, and what others took meanwhile."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Wall, own CPU, and the machine's busy CPU seconds (0 where /proc does not tell)."""
        busy = 0.0
        if Path("/proc/stat").exists():
            fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), busy

    def tick(self) -> None:
        """A step has ended."""
        now = self._now()
        wall, cpu, busy = (b - a for a, b in zip(self._last, now, strict=True))
        others = max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1))
        self.steps.append({"wall_s": wall, "cpu_s": cpu, "others": others})
        self._last = now

    def report(self, **extra: object) -> None:
        """Print the steps after the first (which warms up) as one JSON line."""
        print(json.dumps({"steps": self.steps[1:], **extra}))
