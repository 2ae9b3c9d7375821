"""A resolved config as YAML text that means the same to every reader."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

# Words like `yes` and `6e9` are strings to YAML 1.2 or 1.1 and something else to the other: only plain words go bare.
_BARE = re.compile(r"[A-Za-z_/][\w/.-]*")
_BOOLEAN_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


class _Representer(SafeRepresenter):
    """Quotes every string that some reader could take for another type."""

    def represent_str(self, data: Any) -> ScalarNode:
        bare = _BARE.fullmatch(data) and data.lower() not in _BOOLEAN_WORDS
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", data, style=None if bare else '"')
        return node


_Representer.add_representer(str, _Representer.represent_str)


def dump_yaml(values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> str:
    """Plain values as YAML, keys in their order.

    Args:
        origins: dotted key -> where it was written, a comment above it wherever that is another place than before.
    """
    if origins is not None:
        return "".join(_with_origins(values, origins))
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    text = StringIO()
    yaml.dump(dict(values), text)
    return text.getvalue()


def _with_origins(
    values: Mapping[str, Any], origins: Mapping[str, str], above: str = "", said: str | None = None, depth: int = 0
) -> Iterator[str]:
    indent = "  " * depth
    for name, value in values.items():
        key = f"{above}{name}"
        origin = origins.get(key)
        places = {place for other, place in origins.items() if other.startswith(f"{key}.")} - {origin}
        if origin is not None and origin != said:
            yield f"{indent}# {origin}\n"
            said = origin
        if isinstance(value, dict) and places:
            # Of what is in it some was written elsewhere.
            yield f"{indent}{dump_yaml({name: None}).rpartition(':')[0]}:\n"
            yield from _with_origins(value, origins, f"{key}.", said, depth + 1)
            said = None
            continue
        yield "".join(f"{indent}{line}" for line in dump_yaml({name: value}).splitlines(keepends=True))
