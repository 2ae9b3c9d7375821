"""``~`` at the beginning of a path, as a shell reads it.

``Path.expanduser`` raises where there is no such home, and that is nothing strange: a colleague's may exist on the
cluster alone, and a container may give its user none.
"""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path below the home folder that it names; as it is written where that home is not known here.

    So a path whose home nobody knows does not exist, and who asks for it is told that.
    """
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # no user has a name like that: a zero byte, half a surrogate
        return Path(path)


def homeless(path: str | Path) -> bool:
    """Whether a path begins with ``~`` and no home is known for it here."""
    return str(path).startswith("~") and expanded(path) == Path(path)
