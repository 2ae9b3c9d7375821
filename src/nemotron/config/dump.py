"""A resolved config as YAML text that means the same to every reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, keys in their order."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    text = StringIO()
    yaml.dump(dict(values), text)
    return text.getvalue()
