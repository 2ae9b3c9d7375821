"""Layers onto layers: mappings merge, all else replaces; `_override_: true` replaces a whole top-level section."""

from __future__ import annotations

from nemotron.config.origins import Node, walk
from nemotron.errors import ConfigError

REPLACE = "_override_"


def merge(base: Node, over: Node) -> None:
    """Merge ``over`` into ``base`` in place. A section keeps the origin of its first mention.

    Laws (tested): merging an empty mapping changes nothing; merging the same layer twice is merging it once; merging is
    associative on trees where the same key does not change between mapping and scalar.
    """
    for name, new in over.value.items():
        old = base.value.get(name)
        if old is not None and isinstance(old.value, dict) and isinstance(new.value, dict):
            merge(old, new)
        else:
            base.value[name] = new


def merge_layer(base: Node, layer: Node) -> None:
    """Merge one YAML file on top of its parents, honouring ``_override_`` at the top of a section.

    Raises:
        ConfigError: ``_override_`` stands elsewhere than directly in a top-level section, or is not a boolean. (NeMo-RL
            keeps a nested one as a literal key: a trap, so here it is an error.)
    """
    check_replace_keys(layer)
    for name, section in layer.value.items():
        if isinstance(section.value, dict) and (marker := section.value.pop(REPLACE, None)) and marker.value:
            base.value.pop(name, None)
    merge(base, layer)


def check_replace_keys(layer: Node) -> None:
    """Refuse an ``_override_`` that would not do what it says."""
    for key, node in walk(layer):
        *section, name = key.split(".")
        if name != REPLACE:
            continue
        if len(section) != 1:
            where = f"`{'.'.join(section)}`" if section else "the top of the file"
            raise ConfigError(
                f"`{REPLACE}` does not work in {where}",
                hint="it replaces a whole top-level section: put it directly below one, or list every key you change",
                origin=node.origin,
            )
        if not isinstance(node.value, bool):
            raise ConfigError(f"`{key}` must be `true` or `false`", origin=node.origin)
