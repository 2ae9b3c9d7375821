"""Where the files of a model are, by the name that a config has for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nemotron.disk.home import expanded
from nemotron.place import Place


def is_path(name: str) -> bool:
    """Whether a model name can only mean a folder: hub names have the form ``owner/name`` or ``name``."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or name.count(os.sep) > 1


def may_be_repository(name: str) -> bool:
    """Whether the hub could have a repository of that name; of one that can only be a folder, True, too."""
    return is_path(name) or re.fullmatch(r"([\w.-]+/)?[\w.-]+", name, re.ASCII) is not None


def folder_of(name: str, place: Place) -> Path | None:
    """Where the files of a model are: a local folder, or its snapshot in the Hugging Face cache."""
    if (promised := place.promised_model(name)) is not None:
        # It has the files of the model that it is made of: their sizes, and their tokenizer where it has no other.
        return folder_of(promised.like, place)
    folder = expanded(name)
    if place.sees(folder) and folder.is_dir():
        return folder
    if place.hub_cache is None:
        return None
    snapshots = place.hub_cache / f"models--{name.replace('/', '--')}" / "snapshots"
    found = sorted(path.parent for path in snapshots.glob("*/config.json")) if not is_path(name) else []
    return found[-1] if found else None


def tokenizer_folder(name: str, place: Place) -> Path | None:
    """Where the files of the tokenizer ``name`` are; of a promised model, those of the one that it will hold."""
    promised = place.promised_model(name)
    return folder_of(name, place) if promised is None else tokenizer_folder(promised.tokenizer, place)
