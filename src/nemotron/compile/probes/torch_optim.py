"""What torch's optimizers and schedulers take: a table that `scripts/torch_signatures.py` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nemotron.suggest import closest, listed

Family = Literal["optimizers", "schedulers"]
Table = dict[str, dict[str, dict[str, str]]]

_FROM_0 = ("lr", "eps", "weight_decay", "momentum", "total_iters")
_FROM_1 = ("T_0", "T_mult", "T_max", "step_size", "total_steps", "epochs", "steps_per_epoch")
_SHARES = ("factor", "end_factor", "pct_start")
_Limits = tuple[float, float, str]
_BOUNDS: dict[str, _Limits] = {
    **dict.fromkeys(_FROM_0, (0, math.inf, "from 0")),
    **dict.fromkeys(_FROM_1, (1, math.inf, "from 1")),
    **dict.fromkeys(_SHARES, (0, 1, "from 0 to 1")),
    "start_factor": (math.nextafter(0, 1), 1, "above 0 and up to 1"),
}
"""Argument -> least and greatest value that torch takes, or that it can divide by, and how that is said."""
_BELOW_1 = ("betas",)
"""Shares, from 0 to below 1."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What torch would refuse. ``place`` follows the key of the entry: ``.name``, ``.kwargs.lr``."""

    place: str
    message: str
    hint: str


@cache
def table() -> Table:
    """Family -> dotted name -> argument -> kind, as the script explains it."""
    found: Table = json.loads(Path(__file__).with_suffix(".json").read_bytes())
    return found


def faults(family: Family, name: str, kwargs: Mapping[str, Any], *, any_name: bool = False) -> Iterator[Fault]:
    """What is wrong with an entry ``{name: NAME, kwargs: {...}}`` of a config.

    Args:
        any_name: names that the table does not have are the user's own classes.
    """
    known = table()[family]
    if name not in known:
        short = {one.rpartition(".")[2].lower(): one for one in known}
        guess = closest(name.rpartition(".")[2].lower(), short)
        if not any_name:
            hint = f"did you mean `{short[guess]}`?" if guess else f"choose one of {listed(sorted(known))}"
            yield Fault(".name", f"`{name}` is none of torch's {family}", hint)
        return
    accepted, cls = known[name], name.rpartition(".")[2]
    for argument, value in kwargs.items():
        place = f".kwargs.{argument}"
        if argument not in accepted:
            guess = closest(argument, accepted)
            hint = (f"did you mean `{guess}`? " if guess else "") + f"{cls} takes {listed(list(accepted))}"
            yield Fault(place, f"{cls} has no argument `{argument}`", hint)
        elif wanted := _refused(argument, accepted[argument].removesuffix("!"), value):
            yield Fault(place, f"`{argument}` of {cls} is {wanted}, not `{_shown(value)}`", f"give {wanted}")
    missing = [one for one, kind in accepted.items() if kind.endswith("!") and one not in kwargs]
    if missing:
        names = ", ".join(f"`{one}`" for one in missing)
        yield Fault(".kwargs", f"{cls} needs {names}", f"add {names} to its `kwargs`")


def _refused(argument: str, kind: str, value: Any) -> str | None:
    """What the argument should be, in words, when ``value`` is something else."""
    if kind.endswith("?") and "," not in kind and value is None:
        return None
    kind = kind if "," in kind else kind.removesuffix("?")
    if "," in kind:
        parts, below = kind.split(","), argument in _BELOW_1
        words = f"a list of {len(parts)} numbers" + (" from 0 to below 1" if below else "")
        fits = isinstance(value, list | tuple) and len(value) == len(parts)
        fits = fits and all(_refused("", part, one) is None for part, one in zip(parts, value, strict=True))
        return None if fits and not (below and not all(0 <= one < 1 for one in value)) else words
    if "|" in kind:
        return None if value in kind.split("|") else "one of " + ", ".join(f"`{one}`" for one in kind.split("|"))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    tests = {
        "float": (number, "a number"),
        "int": (number and value == int(value), "a whole number"),
        "bool": (isinstance(value, bool), "true or false"),
        "str": (isinstance(value, str), "a text"),
        "list": (isinstance(value, list | tuple), "a list"),
        "float/list": (number or isinstance(value, list | tuple), "a number or a list of them"),
    }
    fits, words = tests.get(kind, (True, ""))
    least, most, said = _BOUNDS.get(argument, (-math.inf, math.inf, ""))
    if fits and number and not least <= value <= most:
        return f"{words} {said}"
    return None if fits else words


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
