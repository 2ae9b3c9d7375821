"""Weights in files of a model that its config does not mean: which are left out on purpose, and which by mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ANY_HEAD = (HEAD, "score.weight")
"""Output layers: a model may be loaded as one of another kind, without the layer that it has."""
_BUFFERS = ("rotary_emb.inv_freq", ".masked_bias", ".position_ids")
"""Ends of names of what older exports carry and newer ones compute."""


def beyond_layers(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are of a layer behind the last one of the config, which transformers leaves out."""
    layers = config.get("num_hidden_layers")
    # Layers that predict further tokens are numbered on, and left out on purpose.
    if not isinstance(layers, int) or config.get("num_nextn_predict_layers"):
        return []
    found = ((name, re.match(r"(?:model\.)?layers\.(\d+)\.", name)) for name in names)
    return sorted(name for name, match in found if match and int(match[1]) >= layers and not is_known(name))


def is_known(name: str) -> bool:
    """Whether a weight that the config does not mean is one that may lie there all the same."""
    return name in _ANY_HEAD or name.endswith(_BUFFERS)
