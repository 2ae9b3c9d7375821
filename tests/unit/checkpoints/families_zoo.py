"""Tiny models of every family and shape that converts, with a tokenizer; real transformers modules, random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from nemotron.checkpoints.megatron import layout
from nemotron.checkpoints.policy import check_vocabulary, write_root
from nemotron.disk.publish import published

VOCAB = 320
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # large enough that a wrong weight or rope moves the logits
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "llama-tied": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "llama3-rope": LlamaConfig(**_SIZES, rope_parameters=_LLAMA3),
    "llama-mha": LlamaConfig(**{**_SIZES, "num_key_value_heads": 8}),
    "llama-mqa": LlamaConfig(**{**_SIZES, "num_key_value_heads": 1}),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen2-tied": Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SIZES, head_dim=16),
    "qwen3-tied": Qwen3Config(**_SIZES, head_dim=16, tie_word_embeddings=True),
    "mistral": MistralConfig(**_SIZES, sliding_window=None),
    "mistral-window": MistralConfig(**_SIZES, sliding_window=128),
}


def make(folder: Path, name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write the model ``name`` of :data:`CONFIGS` with a tokenizer to ``folder``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype)
    with torch.no_grad():
        for weight_name, parameter in model.named_parameters():
            if weight_name.endswith(("norm.weight", "bias")):
                parameter.normal_(1.0, 0.3)  # ones and zeros would hide a mix-up
    model.save_pretrained(folder)
    write_tokenizer(folder, VOCAB)
    return folder


def write_tokenizer(folder: Path, size: int) -> None:
    """A word-level tokenizer of ``size`` tokens and a chat template."""
    vocab = {f"w{n}": n for n in range(size)}
    content = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def split_in_two(folder: Path) -> None:
    """Turn the single safetensors file of ``folder`` into two with an index, as large models have."""
    from safetensors.torch import load_file

    single = folder / "model.safetensors"
    weights = load_file(single)
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    single.unlink()


def write_megatron(
    state: Mapping[str, Tensor], hf_config: Mapping[str, Any], tokenizer: Path | None, target: Path
) -> Path:
    """A Megatron root as a conversion publishes it; returns the iteration folder."""
    check_vocabulary(tokenizer, int(hf_config["vocab_size"]))
    with published(target, overwrite=False) as folder:
        write_root(folder, state, hf_config, tokenizer, None, None, None, None)
    return target / layout.iteration_name(0)
