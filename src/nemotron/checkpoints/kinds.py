"""What transformers has for a type of models, told from its source: importing it would import torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron.disk.documents import read_bytes

WRITER_HINT = "name a model that writes from left to right, e.g. a Llama, Qwen or Mistral"
START_HINT = "start from another model, e.g. a Llama, Qwen or Mistral"
SCORER_HINT = "give a reward model made from a causal language model"
OTHER_SCORERS = (
    *("bart", "bert", "big_bird", "bigbird_pegasus", "camembert", "ctrl", "data2vec-text", "electra", "ernie", "mbart"),
    *("megatron-bert", "modernbert-decoder", "mvp", "plbart", "reformer", "rembert", "roberta", "roberta-prelayernorm"),
    *("roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
)
"""Types that write and whose sequence classifier is no decoder with a linear head `score`."""
_WRITERS, _SCORERS = "CAUSAL_LM", "SEQUENCE_CLASSIFICATION"


def unknown_type(config: Mapping[str, Any]) -> str | None:
    """The `model_type` that the transformers installed here has never heard of; None of one without it."""
    kind, known = config.get("model_type"), _source()
    if not isinstance(kind, str) or not known:
        return None
    return None if re.search(rf"""["']{re.escape(kind)}["']""", known) else kind


def no_writer(config: Mapping[str, Any]) -> str | None:
    """The `model_type` of which there is no causal language model; None of one without it."""
    return _lacking(config, _WRITERS)


def no_scorer(config: Mapping[str, Any]) -> str | None:
    """The `model_type` of which there is no decoder that scores; None of one without it."""
    kind = config.get("model_type")
    return _lacking(config, _WRITERS, _SCORERS) or (kind if kind in OTHER_SCORERS else None)


def _lacking(config: Mapping[str, Any], *tasks: str) -> str | None:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return None
    return kind if any(types and kind not in types for types in map(_types, tasks)) else None


@cache
def _types(task: str) -> frozenset[str]:
    """All types with a class for ``task``; empty where the source does not say."""
    found = re.search(rf"^MODEL_FOR_{task}_MAPPING_NAMES\b[^=]*= OrderedDict\((.*?)^\)", _source(), re.M | re.S)
    return frozenset(re.findall(r"""\(\s*["']([^"']+)["']\s*,""", found[1])) if found else frozenset()


@cache
def _source() -> str:
    """The source that lists the types of models. Empty without transformers."""
    found = find_spec("transformers")
    folders = found.submodule_search_locations if found is not None else None
    files = sorted(file for folder in folders or () for file in (Path(folder) / "models" / "auto").glob("*.py"))
    try:
        return "".join(read_bytes(file).decode() for file in files)
    except (OSError, ValueError):
        return ""
