"""What was asked for, in the words of who asked: the command, what it changes in the step's default, what it reads.

Goes into ``job.json`` under ``asked``, as texts that a page can show as they are; secrets are in none of them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemotron.compile.plan import Plan
from nemotron.compile.secrets import redact, secret_keys
from nemotron.config import resolvers
from nemotron.config.layers import Resolved, load
from nemotron.errors import CompileError
from nemotron.job import Asked

NOT_SET = "not set"
_SECRET = "[secret]"
_VARIABLE = re.compile(r"\$\{oc\.env:\s*(\w+)")
_STEPS = re.compile(r"\bmax_num_steps\b")


def asked(plan: Plan, words: Sequence[str], config_dir: Path, model: type[BaseModel]) -> Asked:
    """What ``job.json`` says under ``asked``; ``words`` are those of the command line."""
    return Asked(
        command=tuple(command(words, plan.config, plan.secrets())),
        differences=tuple(differences(plan, config_dir, model)),
        inputs=tuple((ref.role, ref.key or ref.role, _short(ref.path), ref.detail) for ref in plan.inputs),
        schedules=tuple(
            f"{section}.scheduler"
            for section in ("policy", "value")
            if _STEPS.search(str((plan.resolved.raw.get(section) or {}).get("scheduler")))
        ),
        data_steps=plan.work.data_steps if plan.work else None,
    )


def command(words: Sequence[str], config: BaseModel | None, secrets: Mapping[str, str]) -> list[str]:
    """The words after ``nemotron``, in which a secret is ``[secret]``, however short it is."""
    keys = secret_keys(config)
    cleaned = []
    for word in words:
        name, equals, _ = word.lstrip("+").partition("=")
        if equals and name in keys:
            word = f"{word[: word.index('=')]}={_SECRET}"
        elif equals and any(key.startswith(f"{name}.") for key in keys):
            for secret in secrets.values():
                word = word.replace(secret, _SECRET)
        cleaned.append(word)
    found: list[str] = redact(cleaned, secrets)
    return found


def differences(plan: Plan, config_dir: Path, model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """(key, default, value, origin) of every value that was written otherwise than in ``default``, by key.

    A value that only follows another one, as ``${policy.precision}`` does, is not among them; one that comes from an
    environment variable is. A step whose default cannot be resolved has none.
    """
    try:
        default = load(config_dir, "default", [], run_dir=str(plan.runs_dir / "RUN_ID"), model=model)
    except CompileError:
        return []
    ours, theirs = plan.resolved, default
    secrets, hidden = plan.secrets(), secret_keys(plan.config)
    values, defaults = _flat(redact(ours.values, secrets)), _flat(redact(theirs.values, secrets))
    raw, raw_default = _flat(ours.raw), _flat(theirs.raw)
    rows: list[tuple[str, str, str, str]] = []
    for key in sorted({*raw, *raw_default}):
        if any(key == secret or key.startswith(f"{secret}.") for secret in hidden):
            continue
        if _is_section(key, raw) or _is_section(key, raw_default):
            continue
        if raw.get(key, NOT_SET) == raw_default.get(key, NOT_SET):
            variable = _variable(raw.get(key))
            if variable:
                written = str(raw_default[key])
                rows.append((key, written, _text(values.get(key)), f"environment variable {variable}"))
        elif values.get(key, NOT_SET) != defaults.get(key, NOT_SET):
            before = _text(defaults[key]) if key in defaults else NOT_SET
            after = _text(values[key]) if key in values else NOT_SET
            rows.append((key, before, after, _origin(ours, key, config_dir)))
    return rows


def _is_section(key: str, flat: Mapping[str, Any]) -> bool:
    """Whether there are keys below ``key``, which then say what ``null`` became, or what became ``null``."""
    return key not in flat and any(other.startswith(f"{key}.") for other in flat)


def _variable(text: Any) -> str | None:
    """The environment variable that gives a value, if one that is set does."""
    match = _VARIABLE.search(text) if isinstance(text, str) else None
    return match[1] if match and match[1] in os.environ else None


def _origin(resolved: Resolved, key: str, config_dir: Path) -> str:
    while key and key not in resolved.origins:
        key = key.rpartition(".")[0]
    origin = resolved.origins.get(key)
    if origin is None:
        return ""
    if origin.line is None:
        return str(origin)
    path = Path(origin.source)
    own = path.absolute().parent == config_dir.absolute()
    return f"{path.name if own else origin.source}:{origin.line}"


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value; lists and empty mappings are values."""
    return dict(_leaves(values, ""))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, value


def _text(value: Any) -> str:
    return _short(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(name: str) -> str:
    """A shipped file by its name there, a path below the working folder relative to it, anything else as it is."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(resolvers.ASSETS):
        return f"asset:{path.relative_to(resolvers.ASSETS).as_posix()}"
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else name
