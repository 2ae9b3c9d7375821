"""The models of the comparisons: random ones of one token a word, and real ones without their chat template.

A model's folder holds ``words.json``: words of which any text has one token each, so that both sides agree on lengths.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from work import WORDS

VOCABULARY = 512
SHAPES = {
    "m1": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "m15": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1792},
}
QWEN = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
"""Qwen2.5-0.5B's shape."""

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
TOKENIZER = Path(__file__).resolve().parents[1] / "src" / "nemotron" / "assets" / "tiny_world" / "policy_tasks"


def random_model(folder: Path, shape: str) -> None:
    """Write a random Llama of `SHAPES`, of one token a word."""
    sizes = {"num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512, **SHAPES[shape]}
    _random(folder, "llama", {"vocab_size": VOCABULARY, **sizes}, _word_tokenizer(folder, VOCABULARY))


def random_qwen(folder: Path, *, tokenizer: Path, plain: bool = False) -> None:
    """Write a random Qwen2 of 494M parameters with 151,936 words, most of which the tokenizer never says.

    Args:
        tokenizer: the folder of a byte-level BPE. transformers reads any tokenizer beside a Qwen2 as one.
        plain: without its chat template, and with its words.
    """
    _random(folder, "qwen2", QWEN, (_plain_tokenizer if plain else _copied)(folder, tokenizer))


def random_smollm2(folder: Path) -> None:
    """Write a random Llama of SmolLM2-135M's shape, with the tokenizer and the chat template of the shipped sums."""
    _random(folder, "llama", SMOLLM2, _copied(folder, TOKENIZER))


def _random(folder: Path, family: str, sizes: dict[str, Any], tokenizer: Any) -> None:
    """Random weights in float32 beside a tokenizer that is there."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(family, **sizes, **ends)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


def _copied(folder: Path, source: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    return tokenizer


def plain_copy(folder: Path, source: Path) -> None:
    """Write the model of ``source`` without its chat template: a prompt is the same tokens on both sides."""
    from transformers import AutoModelForCausalLM

    _plain_tokenizer(folder, source)
    AutoModelForCausalLM.from_pretrained(source).float().save_pretrained(folder)


def _plain_tokenizer(folder: Path, source: Path) -> Any:
    """The tokenizer of ``source`` without its chat template, with its words of one token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = None
    known = sorted(tokenizer.get_vocab())
    letters = (word.removeprefix("\u0120") for word in known if word.startswith("\u0120"))  # byte-level BPE's space
    found = [word for word in letters if len(word) > 2 and word.isascii() and word.isalpha()]
    words = [word for word in found if all(len(tokenizer(text)["input_ids"]) == 1 for text in (word, " " + word))]
    tokenizer.save_pretrained(folder)
    (folder / WORDS).write_text(json.dumps(words))
    return tokenizer


def _word_tokenizer(folder: Path, size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f"w{i}" for i in range(size - 3)]
    known = ["<pad>", "<eos>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    found.save_pretrained(folder)
    (folder / WORDS).write_text(json.dumps(words))
    return found
