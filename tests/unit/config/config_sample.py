"""A small model with every shape that the real ones have, and helpers to resolve text against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from nemotron.config.layers import Resolved, load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.base import Open, Strict
from nemotron.config.schema.fields import Off, Omittable, needs_keys_when_enabled


class Scheduler(Strict):
    """One entry of a list."""

    name: str
    """Class."""
    steps: int = 1
    """Length."""


class Megatron(Strict):
    """A section that may be off."""

    enabled: bool
    """Use it."""
    size: int
    """GPUs."""


class Train(Strict):
    """The usual section."""

    max_num_steps: int = Field(ge=1)
    """Steps."""
    lr: float = 1e-3
    """Learning rate."""
    mode: Literal["auto", "off"] | int = "auto"
    """How, or how many."""
    scheduler: list[Scheduler] | None = None
    """Schedulers."""
    limit: Omittable[int] = None
    """May be left out."""
    seed: int = 0
    """Seed."""
    megatron: Annotated[Megatron | Off, needs_keys_when_enabled(Megatron)] = Off(enabled=False)
    """Megatron."""


class Server(Open):
    """A section that passes unknown keys through."""

    url: str | None = None
    """Address."""
    api_key: SecretStr | None = None
    """Key."""


class Sample(Strict):
    """The whole tree."""

    name: str
    """Name."""
    train: Train
    """Training."""
    server: Server = Server()
    """Server."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Anything."""
    clusters: dict[str, Megatron] = Field(default_factory=dict)
    """Named sections."""


GOOD = """\
name: sample
train:
  max_num_steps: 10
  scheduler:
    - name: a
    - name: b
      steps: 2
server:
  url: null
"""


def write(folder: Path, text: str = GOOD, name: str = "default") -> Path:
    """Put a config file into ``folder`` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def resolve(folder: Path, words: Sequence[str] = (), *, text: str = GOOD, run_dir: str = "runs/one") -> Resolved:
    """Resolve ``text`` with overrides; the first word is argument 5 of the command line."""
    write(folder, text)
    overrides = parse_overrides(list(enumerate(words, 5)))
    return load(folder, "default", overrides, run_dir=run_dir, model=Sample)
