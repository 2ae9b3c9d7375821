"""How to install an extra of this product, in the words of a hint.

The public index is not named: a package of this name there need not be ours. An extra comes from where the product
itself came from.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "nemotron-steps"


def install_extra(name: str) -> str:
    """The words that install the extra ``name``, e.g. ``pip install -e '/home/me/nemotron[local]'``.

    Where the product came from a place that is no longer there, they say in words what to do.
    """
    for options, place in _places():
        return f"pip install {options}{shlex.quote(f'{place}[{name}]')}"
    return f"install the extra `{name}` of the checkout or wheel that nemotron came from"


def _places() -> Iterator[tuple[str, Path]]:
    """Where to install from, with pip's options: the checkout that runs, else what pip noted down."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "src" / "nemotron").is_dir():
        yield "-e ", checkout
    if (origin := _noted()) is not None and origin.exists():
        yield "", origin


def _noted() -> Path | None:
    """The folder or wheel of pip's ``direct_url.json``; ``None`` for an index or a place on another machine."""
    from importlib import metadata

    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlsplit(str(json.loads(text)["url"])) if text else None
    return Path(unquote(url.path)) if url is not None and url.scheme == "file" else None
