"""What will lie at a path before it does: the artifacts that a run will make, as far as its config says.

The preflight of a pipeline looks at a promise where it would look at the files. A promised checkpoint is looked at
through the model that it is made of; of promised data the kind and the splits are known. What a promise does not say,
nobody can say before the run has ended, and a rule that asks for it stays silent, as it does about another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelPromise:
    """A checkpoint."""

    type: str
    """``checkpoint_hf``, ``checkpoint_megatron`` or ``checkpoint_run``."""
    like: str
    """Folder or hub name of the model whose family and sizes it has; a promised path where that is promised itself."""
    tokenizer: str
    """Folder or hub name of the tokenizer that lies in it, with its chat template unless ``template`` says another."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What its `config.json` says otherwise than that of ``like``."""
    template: str | None = None
    """The chat template that is stored with its tokenizer, where the config gives one."""


@dataclass(frozen=True)
class DataPromise:
    """Prepared data."""

    type: str
    kind: str | None
    """Kind of the rows, as the manifest will name it; None where the sources do not tell."""
    splits: tuple[str, ...] | None
    """The splits that will have rows, if any has; None where the sources do not tell."""
    tokens: bool = False
    """Whether token ids lie beside the rows."""


@dataclass(frozen=True)
class FilePromise:
    """A file of which nothing needs to be known beforehand: results, metrics, a report."""

    type: str


Promise = ModelPromise | DataPromise | FilePromise
