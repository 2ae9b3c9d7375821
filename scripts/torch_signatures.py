"""Write what the optimizers and schedulers of the installed torch take, for the preflight, which never imports torch.

    .venv/bin/python scripts/torch_signatures.py

A kind is a type, with `?` where None is allowed and `!` where there is no default; a tuple is its kinds with commas.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from nemotron.rl.optim import optimizer_names, scheduler_names

TARGET = Path(__file__).parents[1] / "src" / "nemotron" / "compile" / "probes" / "torch_optim.json"


def table() -> dict[str, dict[str, dict[str, str]]]:
    """``optimizers`` and ``schedulers`` -> dotted name -> argument -> kind."""
    return {
        "optimizers": {name: _arguments(name) for name in optimizer_names()},
        "schedulers": {name: _arguments(name) for name in scheduler_names()},
    }


def _arguments(name: str) -> dict[str, str]:
    module, _, cls = name.rpartition(".")
    found = getattr(torch.optim.lr_scheduler if module.endswith("lr_scheduler") else torch.optim, cls)
    # torch imports the names of its annotations for type checkers only.
    hints = get_type_hints(found.__init__, {**vars(collections.abc), **found.__init__.__globals__})
    _, *parameters = inspect.signature(found).parameters.values()
    return {
        one.name: _kind(hints[one.name]) + ("!" if one.default is inspect.Parameter.empty else "") for one in parameters
    }


def _kind(hint: Any) -> str:
    """``float``, ``int``, ``bool``, ``str``, choices, tuples, lists; ``any`` for what a config cannot spell."""
    if isinstance(hint, type) and hint in (float, int, bool, str):
        return hint.__name__
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if get_origin(hint) is tuple:
        return ",".join(_kind(one) for one in get_args(hint))
    if get_origin(hint) in (list, Iterable):
        return "list"
    if get_origin(hint) is Callable:
        return "any"
    spelled = [_kind(one) for one in get_args(hint) if one not in (type(None), torch.Tensor)]
    known = sorted({one for one in spelled if one != "any"})
    return ("/".join(known) or "any") + ("?" if type(None) in get_args(hint) else "")


if __name__ == "__main__":
    TARGET.write_text(json.dumps(table(), indent=1) + "\n")
