"""A small random Llama and a tokenizer of single characters, made in the test."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nemotron.rl.chat import Chat
from nemotron.rl.policy import Policy

LETTERS = "abcdefghijklmnopqrstuvwxyz "
VOCABULARY = {"<eos>": 0, "<unk>": 1, **{letter: i for i, letter in enumerate(LETTERS, start=2)}}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tiny_policy(seed: int = 0, scale: float = 1.0) -> Policy:
    """About 30 thousand parameters; larger ``scale`` makes its distribution sharper."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return Policy(model)


def tiny_chat() -> Chat:
    """Each letter is a token."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    return Chat(fast, {})
