"""Configs as nobody would write them: shipped ones, changed at random in a few places. A seed always gives the same."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemotron.config.layers import config_names, read_layers
from nemotron.config.origins import plain
from nemotron.manifest import find_step, load_catalog

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, -7, 3, 10**6, 2**31, 2**63, -(2**63), 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.5, -0.1, 1e-300, 1e300, -1e300, float("inf"), float("-inf"), float("nan")),
    *("", " ", "0", "-1", "1e5", "nan", ".inf", "null", "~", "true", "no", "2026-01-01", "12:30:45", "0x10", "1_000"),
    *(
        ".",
        "..",
        "/",
        "~",
        "~nobody/x",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/etc",
        "a/b",
        "a" * 300,
        "x/" * 3000,
    ),
    *("\x00", "a\x00b", "\n", "\r\n\t", "\x1b[31m", "\u202e", "\ufeff", "\ud800", "a\udfffb", "\U0001f600", "é" * 200),
    *(
        "%s%n",
        "{0}",
        "{x}",
        "$HOME",
        "`id`",
        "; rm",
        "../" * 40,
        "<b>",
        "[red]x[/]",
        "[/]",
        "[",
        "*",
        "**/*",
        "[!",
        "(?P<",
    ),
    *(
        "${",
        "${}",
        "${x}",
        "${policy}",
        "${grpo.seed}",
        "${.}",
        "${..}",
        "${...seed}",
        "${a.b.c.d}",
        "${a${b}}",
        "$${x}",
    ),
    *("${oc.env:}", "${oc.env:NOPE}", "${oc.env:HOME}", "${oc.env:NOPE,}", "${oc.env:NOPE,${oc.env:NOPE,7}}"),
    *("${oc.select:policy}", "${oc.select:}", "${oc.decode:}", "${oc.decode:'[1'}", "${oc.decode:${oc.env:HOME}}"),
    *("${mul:}", "${mul:1,2}", "${mul:a,b}", "${mul:1e308,10}", "${div:1,0}", "${div:7,2}", "${max:}", "${max:1,a}"),
    *("${asset:}", "${asset:..}", "${asset:nope}", "${asset:/etc}", "${run_dir:}", "${run_dir:../x}", "${nope:1}"),
    *("${oc.dict.keys:policy}", "${oc.create:{a:1}}", "${oc.deprecated:x}", "???", "${" * 60, "${a:" * 40 + "}" * 40),
    *(
        [],
        {},
        [[]],
        [None],
        [{}],
        {"": 1},
        {"a": {"b": {}}},
        {1: 2},
        {"a.b": 1},
        {"_target_": "os.system"},
        [1, "a", None],
    ),
    *({"${x}": 1}, {"\ud800": 1}, {"\x00": 2}, {"_override_": True}, {"defaults": "tiny"}, list(range(50)), {True: 1}),
    *(
        "tiny",
        "default",
        "local",
        "auto",
        "judge",
        "math",
        "code",
        "llm",
        "cuda",
        "bfloat16",
        "float64",
        "http://[",
        "http://",
    ),
    *(
        "http://x:99999999",
        "https://user:pw@h/",
        "ftp://h",
        "http://\u2603/",
        "hf://",
        "hf://a/b@c/d",
        "os.system",
        "a:b",
    ),
)
"""Values that are wrong nearly everywhere, and right in a few places."""


@dataclass(frozen=True)
class Mutant:
    """One command: a step, the text of its config, and overrides."""

    step: str
    text: str
    overrides: tuple[str, ...]


def shipped() -> list[tuple[str, str]]:
    """Every step with every config that comes with it."""
    catalog = load_catalog()
    return [(step.id, name) for step in catalog.steps for name in config_names(step.config_dir)]


def mutant(seed: int) -> Mutant:
    """The mutant of a seed."""
    draw = random.Random(seed)
    step, name = draw.choice(shipped())
    root, _ = read_layers(find_step(step).config_dir, name)
    values = plain(root)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        draw.choice(CHANGES)(draw, values)
    overrides = [_override(draw, values) for _ in range(draw.choice((0, 0, 1, 2)))]
    text = yaml.safe_dump(values, sort_keys=False)
    if draw.random() < 0.1:
        text = _scratched(draw, text)
    # No argument of a command holds a null character, whoever calls it.
    return Mutant(step, text, tuple(word.replace("\x00", "") for word in overrides))


SHORT: dict[str, dict[str, dict[str, Any]]] = {
    "rl/nemo_rl/rlhf": {"grpo": {"num_prompts_per_step": 2}, "policy": {"train_global_batch_size": 16}},
    "rl/nemo_rl/rlvr": {"grpo": {"num_prompts_per_step": 2}, "policy": {"train_global_batch_size": 16}},
    "rl/nemo_rl/ppo": {"ppo": {"num_prompts_per_step": 4}, "policy": {"train_global_batch_size": 16}},
    "rl/nemo_rl/dpo": {"dpo": {"val_batches": 1}, "policy": {"train_global_batch_size": 8}},
    "rl/nemo_rl/rm": {"rm": {"val_batches": 1}},
    "sft/nemo_rl": {"sft": {"val_batches": 1}, "policy": {"train_global_batch_size": 8}},
    "eval/reward_audit": {"audit": {"pairs": 4, "repeats": 0}},
}
"""What makes a step of a tiny config one of seconds."""
ALGORITHMS = ("grpo", "ppo", "dpo", "rm", "sft")


def near_mutant(seed: int) -> Mutant:
    """A tiny config that ends after one step, with one value changed, or two: many of them compile."""
    draw = random.Random(f"near {seed}")
    step = draw.choice(sorted({step for step, name in shipped() if name == "tiny"}))
    root, _ = read_layers(find_step(step).config_dir, "tiny")
    values = plain(root)
    for section, keys in SHORT.get(step, {}).items():
        for key, value in keys.items():
            values[section][key] = value
            if key == "train_global_batch_size":
                values[section]["train_micro_batch_size"] = value
    for section in ALGORITHMS:
        if section in values:
            values[section]["max_num_steps"] = 1
    if heldout := values.get("eval", {}).get("heldout"):
        heldout["max_samples"] = 4
    for _ in range(draw.choice((1, 1, 2))):
        draw.choice((_nudge, _nudge, _replace, _replace, _drop, _swap))(draw, values)
    return Mutant(step, yaml.safe_dump(values, sort_keys=False), ())


def _swap(draw: random.Random, values: dict[str, Any]) -> None:
    """A value to another that the config has elsewhere, of the same kind."""
    at, key = _place(draw, values)
    alike = [inner[name] for inner, name in _places(values) if type(inner[name]) is type(at[key])]
    at[key] = copy.deepcopy(draw.choice(alike))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with every key or index in it."""
    found, rest = [], [value]
    while rest:
        at = rest.pop()
        pairs = at.items() if isinstance(at, dict) else enumerate(at)
        for key, inner in pairs:
            found.append((at, key))
            if isinstance(inner, dict | list):
                rest.append(inner)
    return found


def _place(draw: random.Random, values: dict[str, Any]) -> tuple[Any, Any]:
    places = _places(values)
    return draw.choice(places) if places else (values, "x")


def _junk(draw: random.Random, _: Any = None) -> Any:
    return copy.deepcopy(draw.choice(JUNK))


def _replace(draw: random.Random, values: dict[str, Any]) -> None:
    at, key = _place(draw, values)
    at[key] = _junk(draw)


def _nudge(draw: random.Random, values: dict[str, Any]) -> None:
    """A number to another of its kind, which is where a config is nearly right."""
    numbers = [(at, key) for at, key in _places(values) if isinstance(at[key], int | float)]
    if numbers:
        at, key = draw.choice(numbers)
        at[key] = draw.choice(
            (at[key] + 1, at[key] - 1, at[key] * 2, -at[key], at[key] * 1000, 0, not at[key], str(at[key]))
        )


def _drop(draw: random.Random, values: dict[str, Any]) -> None:
    at, key = _place(draw, values)
    at.pop(key, None) if isinstance(at, dict) else at.clear()


def _drop_section(draw: random.Random, values: dict[str, Any]) -> None:
    if values:
        del values[draw.choice(list(values))]


def _duplicate(draw: random.Random, values: dict[str, Any]) -> None:
    """A value once more, under another name or in another place."""
    at, key = _place(draw, values)
    where, name = _place(draw, values)
    value = copy.deepcopy(at.get(key) if isinstance(at, dict) else at[key])
    if isinstance(where, dict) and draw.random() < 0.5:
        where[f"{name}x"] = value
    else:
        where[name] = value


def _wrap(draw: random.Random, values: dict[str, Any]) -> None:
    at, key = _place(draw, values)
    value = at.get(key) if isinstance(at, dict) else at[key]
    for _ in range(draw.choice((1, 1, 3, 48, 90))):
        value = {"a": value} if draw.random() < 0.5 else [value]
    at[key] = value


def _add(draw: random.Random, values: dict[str, Any]) -> None:
    at, _ = _place(draw, values)
    if isinstance(at, dict):
        at[draw.choice(("x", "", "policy", "a.b", "_override_", "enabled", "\ud800", "${x}", 7, None, "k" * 5000))] = (
            _junk(draw)
        )
    else:
        at.append(_junk(draw))


def _point(draw: random.Random, values: dict[str, Any]) -> None:
    """An interpolation of another place, maybe of itself."""
    at, key = _place(draw, values)
    where, name = _place(draw, values)
    own = [name] if where is values else [draw.choice(list(values) or ["x"]), name]
    at[key] = "${" + ".".join(map(str, own)) + "}"


CHANGES: tuple[Callable[[random.Random, dict[str, Any]], None], ...] = (
    *(_replace, _replace, _replace, _nudge, _nudge, _nudge, _drop, _drop_section, _duplicate, _wrap, _add, _point),
)


def _override(draw: random.Random, values: dict[str, Any]) -> str:
    at, key = _place(draw, values)
    names = _names(values, at) or []
    name = ".".join(map(str, [*names, key]))
    if draw.random() < 0.1:
        return f"~{name}"
    form = draw.choice(("{}={}", "+{}={}", "++{}={}", "{}={}", "{}={}", "{}[0]={}", "{}.x={}"))
    value = _junk(draw)
    return form.replace("{}", name, 1).replace("{}", value if isinstance(value, str) else str(value)[:5000], 1)


def _names(root: Any, wanted: Any) -> list[Any] | None:
    """The keys that lead from ``root`` to the very object ``wanted``."""
    if root is wanted:
        return []
    for key, inner in root.items() if isinstance(root, dict) else enumerate(root):
        if isinstance(inner, dict | list) and (rest := _names(inner, wanted)) is not None:
            return [key, *rest]
    return None


def _scratched(draw: random.Random, text: str) -> str:
    """Text of a config with lines lost, doubled or shifted, or characters put in."""
    lines = text.split("\n")
    where, until = sorted(draw.randrange(len(lines) + 1) for _ in range(2))
    kind = draw.randrange(5)
    if kind == 0:
        del lines[where:until]
    elif kind == 1:
        lines[where:where] = lines[where:until]
    elif kind == 2:
        lines[where:until] = ["  " + line for line in lines[where:until]]
    elif kind == 3:
        lines.insert(
            where,
            draw.choice(
                ("---", "...", "%YAML 9", "\t", "? x", "- x", "&a", "*a", "<<: *a", "!!python/none", "x: !!x y")
            ),
        )
    else:
        lines.insert(
            where, "".join(chr(draw.choice((*range(1, 128), 0x85, 0x2028, 0xFEFF, 0x1F600))) for _ in range(9))
        )
    return "\n".join(lines)


def written(mutated: Mutant, folder: Path) -> Path:
    """The config file of a mutant."""
    path = folder / "mutant.yaml"
    path.write_text(mutated.text, encoding="utf-8")
    return path
