"""A byte-level BPE tokenizer whose chat template knows the roles of a group-comparison judge."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 768
PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "principle", "response_1", "response_2")
SPECIAL = [PAD, END, *(f"<|{role}|>" for role in ROLES), "<|verdict|>"]

# Each stretch of JSON between two numbers becomes one token: a verdict is seven tokens and the end of turn.
_PIECES = Regex(r'\{"score_1": |, "score_2": |, "ranking": | ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+')

CHAT_TEMPLATE = """\
{%- set judging = namespace(value=false) -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'principle', 'response_1', 'response_2'] -%}
{{- raise_exception('this tokenizer has no role `' ~ message.role ~ '`') -}}
{%- endif -%}
{%- if message.role in ['response_1', 'response_2'] -%}{%- set judging.value = true -%}{%- endif -%}
{{- '<|' ~ message.role ~ '|>' ~ (message.content | trim) ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|verdict|>' if judging.value else '<|assistant|>' -}}{%- endif -%}
"""


def train(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn `VOCAB_SIZE` tokens from ``texts``; the same texts give the same tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer with a config that older transformers (and so vLLM) read as well."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Release 5 notes how the tokenizer was loaded, and names a class that release 4 does not have.
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only", "backend")}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
