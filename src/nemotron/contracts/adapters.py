"""Which modules of a model the patterns of a LoRA section mean: the one definition for the compile and the run.

As NeMo-RL's Automodel reads them: a name is that of a module, whatever stands before it, and one with ``*`` is a whole
path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def meant(pattern: str, modules: Iterable[str]) -> list[str]:
    """The paths among ``modules`` that ``pattern`` names, in their order.

    Example: ``q_proj`` and ``model.layers.*.q_proj`` both mean ``model.layers.0.self_attn.q_proj``; ``proj`` does not.
    """
    if "*" not in pattern:
        return [path for path in modules if path == pattern or path.endswith(f".{pattern}")]
    parts = ".*".join(map(re.escape, pattern.split("*")))
    return [path for path in modules if re.fullmatch(parts, path)]


def adapted(modules: Sequence[str], targets: Iterable[str], excluded: Iterable[str]) -> list[str]:
    """The paths that get an adapter, in the order of ``modules``."""
    wanted = {path for pattern in targets for path in meant(pattern, modules)}
    wanted -= {path for pattern in excluded for path in meant(pattern, modules)}
    return [path for path in modules if path in wanted]
