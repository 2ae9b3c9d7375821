"""Folders that will be made."""

from __future__ import annotations

from pathlib import Path

from nemotron.disk.home import expanded


def existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    path = expanded(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())
