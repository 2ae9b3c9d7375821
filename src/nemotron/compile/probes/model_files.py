"""What a model folder says about itself, read without torch or transformers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron.checkpoints.chat_template import DEFAULT, folder_problem, read_template, template_fault, templates_of
from nemotron.checkpoints.folders import folder_of as folder_of
from nemotron.checkpoints.folders import is_path as is_path
from nemotron.checkpoints.folders import may_be_repository as may_be_repository
from nemotron.checkpoints.folders import tokenizer_folder as tokenizer_folder
from nemotron.checkpoints.surplus import HEAD
from nemotron.checkpoints.turn_end import added_tokens, special_tokens
from nemotron.compile.probes.weights import Doubts, doubts, read_headers
from nemotron.data.manifest import PASS_THROUGH
from nemotron.disk.documents import read_json
from nemotron.disk.home import expanded
from nemotron.place import Place

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "vocab.bpe", "*.model", "*.tiktoken", "*.spm")
"""Files that hold the tokens; `tokenizer_config.json` alone has none."""
_WITHOUT_TOKENS = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers of bytes or letters, which need no file."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Facts of a local model folder; None where its files do not say."""

    folder: Path
    config: dict[str, Any]
    parameters: int | None
    """Counted from the headers of the safetensors files."""
    in_experts: int
    """Of these, the parameters of experts that tokens are sent to; 0 where there are none, or nothing was counted."""
    has_weights: bool
    broken: str | None
    """Name of a safetensors file whose header cannot be read, or that is shorter than it says."""
    has_tokenizer: bool
    heads: int | None
    kv_heads: int | None
    vocabulary: int | None
    """Rows of the embedding."""
    positions: int | None
    """Longest sequence, in tokens, that it was trained for."""
    tokens: int | None
    """One more than the highest token id that the tokenizer has once it is loaded; of those with a
    ``tokenizer.json``."""
    own_head: bool = False
    """The files hold an output layer, whatever `config.json` says of it; ``parameters`` counts it."""
    damage: str | None = None
    """What is wrong with `config.json` or the tokenizer's files, whoever reads them: a clause about the folder."""
    doubts: Doubts = field(default_factory=Doubts)
    """Where the weights are not those of `config.json`, for who loads them."""


def read_model(name: str, place: Place) -> ModelFiles | None:
    """Facts of a model that is on this machine, else None."""
    if (promised := place.promised_model(name)) is not None:
        made_of, tokenizer = read_model(promised.like, place), read_model(promised.tokenizer, place)
        if made_of is None:
            return None
        tokens = made_of.tokens if tokenizer is None else tokenizer.tokens
        return replace(made_of, config={**made_of.config, **promised.changes}, tokens=tokens)
    folder = folder_of(name, place)
    return _facts(folder) if folder else None


def _facts(folder: Path) -> ModelFiles:
    # What is remembered must not depend on where the process stands.
    return _read(folder.absolute())


@lru_cache(maxsize=8)
def _read(folder: Path) -> ModelFiles:
    written = _json(folder / "config.json") or {}
    # What cannot be is said once, and not computed with.
    config = {name: value for name, value in written.items() if name not in _SIZES or _fits(value)}
    heads = _integer(config.get("num_attention_heads"))
    stored, broken = read_headers(folder)
    elements = {name: math.prod(tensor.shape) for name, tensor in stored.items()}
    tokens = _tokens(folder)  # read once: such files may be large
    damage = _damaged_config(written) or _damaged_tokenizer(folder, tokens)
    return ModelFiles(
        folder=folder,
        config=config,
        parameters=sum(elements.values()) or None,
        in_experts=sum(number for name, number in elements.items() if ".experts." in name),
        broken=broken,
        has_weights=any(next(folder.glob(pattern), None) for pattern in WEIGHTS),
        has_tokenizer=_has_tokenizer(folder),
        heads=heads,
        kv_heads=_integer(config.get("num_key_value_heads")) or heads,
        vocabulary=_integer(config.get("vocab_size")),
        positions=_integer(config.get("max_position_embeddings")),
        tokens=tokens,
        own_head=HEAD in stored,
        damage=damage,
        doubts=Doubts() if damage else doubts(folder, config, stored),
    )


_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size", "max_position_embeddings"),
)
"""What a model cannot have none of; families that call them otherwise are not looked at."""


def _damaged_config(config: dict[str, Any]) -> str | None:
    """Sizes that no model has."""
    for name in _SIZES:
        value = config.get(name)
        if not _fits(value):
            return f"has a `config.json` that says `{name}` is {json.dumps(value)[:40]}"
    heads, kv_heads, hidden = (
        config.get(name) for name in ("num_attention_heads", "num_key_value_heads", "hidden_size")
    )
    if heads and kv_heads and heads % kv_heads:
        return f"has a `config.json` with {heads} attention heads that {kv_heads} key-value heads do not divide"
    even = config.get("model_type") in ("llama", "mistral", "qwen2")
    if even and heads and hidden and not config.get("head_dim") and hidden % heads:
        return f"has a `config.json` with a `hidden_size` of {hidden} that {heads} attention heads do not divide"
    return None


def _fits(size: Any) -> bool:
    return size is None or ((_integer(size) or 0) > 0)


def _has_tokenizer(folder: Path) -> bool:
    if any(path.is_file() for name in TOKENIZER for path in folder.glob(name)):
        return True
    settings = _json(folder / "tokenizer_config.json") or {}
    # Code that lies beside a model may keep its tokens anywhere.
    return bool(settings.get("auto_map")) or settings.get("tokenizer_class") in _WITHOUT_TOKENS


def _damaged_tokenizer(folder: Path, tokens: int | None) -> str | None:
    """Files of a tokenizer that are no objects, or a tokenizer without a single token."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists() and _json(folder / name) is None:
            return f"has a `{name}` that cannot be read as a JSON object"
    if (folder / "tokenizer.json").exists() and tokens is None:
        return "has a `tokenizer.json` without tokens"
    return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tokens(folder: Path) -> int | None:
    tokenizer = _json(folder / "tokenizer.json")
    if tokenizer is None:
        return None
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids = {str(text): number for text, number in vocabulary.items() if isinstance(number, int)}
    else:
        # A list of pairs of text and score, in the order of their ids.
        pairs = vocabulary if isinstance(vocabulary, list) else []
        ids = {str(pair[0] if isinstance(pair, list) and pair else pair): number for number, pair in enumerate(pairs)}
    ids |= added_tokens(folder)
    if not ids:
        return None
    # What is called special and is no token yet becomes one when the tokenizer is loaded, behind all others.
    return max(ids.values()) + 1 + len(special_tokens(folder) - set(ids))


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What has to agree between two tokenizers; None where the files do not say."""

    vocabulary: dict[str, int] | None
    """Token -> id."""
    chat_template: str | None


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Facts of the tokenizer files in ``folder``, read without transformers."""
    content = _json(folder / "tokenizer.json") or {}
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return TokenizerFacts(vocabulary if isinstance(vocabulary, dict) else None, templates_of(folder).get(DEFAULT))


def tokenizer_at(name: str, place: Place) -> TokenizerFacts | None:
    """Facts of the tokenizer ``name``, or of the one that a promised model will hold; None when it is not here."""
    folder = tokenizer_folder(name, place)
    if folder is None:
        return None
    facts, template = tokenizer_facts(folder), _promised_template(name, place)
    return facts if template is None else replace(facts, chat_template=template)


def _promised_template(name: str, place: Place) -> str | None:
    """The chat template that a promised model will hold, where it is not that of its tokenizer's files."""
    promised = place.promised_model(name)
    return None if promised is None else promised.template or _promised_template(promised.tokenizer, place)


def chat_template(name: str | None, facts: TokenizerFacts) -> str | None:
    """The text of a chat template: NeMo-RL's `null` joins contents, `default` is the tokenizer's own; None unknown."""
    if name is None:
        return PASS_THROUGH
    if name == "default":
        return facts.chat_template
    if name.endswith(".jinja"):
        path = expanded(name)
        try:
            return read_template(path)
        except OSError:
            return None  # the rules about the tokenizer say so
    return name


def template_problem(name: str, place: Place) -> str | None:
    """Why conversations cannot be written with the tokenizer ``name``; None when they can, or when it is not here."""
    folder = tokenizer_folder(name, place)
    if folder is None or not _facts(folder).has_tokenizer:
        return None
    if (template := _promised_template(name, place)) is not None:
        fault = template_fault(template)
        return f"has a chat template that {fault}" if fault else None
    if folder != expanded(name) and not (folder / "tokenizer_config.json").is_file():
        return None  # a download that is not whole: the rest is fetched when the run starts
    return folder_problem(folder)
