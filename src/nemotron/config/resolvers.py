"""Interpolation through OmegaConf: `${key}`, `${oc.env:NAME,default}`, `${mul:a,b}` and our own resolvers.

Runs after the overrides, so that everything that refers to an overridden key follows it.

=========================  ============================================================================
``${oc.env:NAME,default}``  an environment variable; ``oc.select`` and ``oc.decode`` are OmegaConf's too
``${mul:a,b}``              product; ``${div:a,b}`` true division (always a float); ``${max:a,b}``
``${asset:tiny_world/policy}``  a file shipped with the package
``${run_dir:}``             the folder of this run
``${artifact:RUN:TYPE}``    what a run made (:mod:`nemotron.config.named`)
=========================  ============================================================================
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from nemotron.config.expansion import Expansion
from nemotron.config.known import nearest
from nemotron.config.origins import kind
from nemotron.config.referenced import UnresolvableError, filled, is_plain, laid_over, part_of
from nemotron.errors import ConfigError, Finding, NemotronError, NotAvailableError, NotFoundError, Origin
from nemotron.suggest import closest, listed

ASSETS = Path(__file__).parent.parent / "assets"
FORMS = {
    "oc.env": "${oc.env:NAME,default}",
    "oc.select": "${oc.select:key,default}",
    "oc.decode": "${oc.decode:text}",
    "mul": "${mul:a,b}",
    "div": "${div:a,b}",
    "max": "${max:a,b}",
    "asset": "${asset:tiny_world/policy}",
    "run_dir": "${run_dir:}",
    "artifact": "${artifact:RUN:TYPE}",
}
"""How each resolver is written."""
RESOLVERS = tuple(FORMS)
_MISSING = "???"
_TARGET = re.compile(r"\$\{([\w.]+)\}")


def interpolate(
    raw: dict[str, Any], origins: dict[str, Origin], *, run_dir: str, before: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Resolve every interpolation of ``raw``; the second result names all that cannot be resolved.

    The values are complete only when there is no finding.

    Args:
        before: the values that ``raw`` has in another run folder; what does not depend on it stays.
    """
    _register(run_dir)
    with warnings.catch_warnings():
        # An empty default, `${oc.env:NAME,}`, is an empty text; OmegaConf would rather have it quoted.
        warnings.filterwarnings("ignore", "In the sequence .* some elements are missing", UserWarning)
        return _interpolated(raw, origins, before)


def _interpolated(
    raw: dict[str, Any], origins: dict[str, Origin], before: dict[str, Any] | None
) -> tuple[dict[str, Any], list[Finding]]:
    texts = [(key, text, _nearest_origin(origins, key)) for key, text in _texts(raw)]
    if before is None and (findings := _findings(raw, texts, origins)):
        return raw, findings
    try:
        resolved = _resolved(raw, before)
    except OmegaConfBaseException as error:
        # It stops at the first, so each is tried for itself, which takes as long again.
        found = _failures(_created(raw), texts, raw, origins)
        if not found:
            # A key with a dot in its own name cannot be tried for itself.
            key = str(error.full_key or "")
            text = next((text for name, text, _ in texts if name == key), "")
            found = [_explain(error, key, text, _nearest_origin(origins, key), set(origins))]
        return raw, found
    return {str(key): value for key, value in resolved.items()}, []


def _resolved(raw: dict[str, Any], before: dict[str, Any] | None) -> dict[Any, Any]:
    """Raises OmegaConfBaseException: an interpolation cannot be resolved."""
    if (part := part_of(raw, None if before is None else "run_dir")) is not None:
        computed = OmegaConf.to_container(OmegaConf.create(part), resolve=True) if part else {}
        computed = computed if before is None else laid_over(before, computed)
        with suppress(UnresolvableError):  # OmegaConf says why, or knows better
            return filled(raw, computed)
    values = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    assert isinstance(values, dict)
    return values


def _created(raw: dict[str, Any]) -> DictConfig:
    config = OmegaConf.create(raw)
    assert isinstance(config, DictConfig)
    return config


def _findings(
    raw: dict[str, Any], texts: list[tuple[str, str, Origin | None]], origins: dict[str, Origin]
) -> list[Finding]:
    """What can be said before anything is resolved."""
    findings = [finding for finding in (_malformed(*text) for text in texts) if finding is not None]
    if not findings and (fault := Expansion(raw).fault()) is not None:
        key, reason = fault
        findings = [Finding("error", "circular-reference", f"`{key}` {reason}", key, _nearest_origin(origins, key))]
    return findings


def _failures(
    config: DictConfig, texts: list[tuple[str, str, Origin | None]], raw: dict[str, Any], origins: dict[str, Origin]
) -> list[Finding]:
    """All that cannot be resolved, by its cause."""
    failed: dict[str, tuple[str, Finding]] = {}
    for key, text, origin in texts:
        if "${" in text and (finding := _try(config, key, text, origin, set(origins))) is not None:
            failed[key] = (text, finding)
    # What merely refers to a value that cannot be resolved would repeat its message.
    causes = {key for key, (_, finding) in failed.items() if finding.name == "unresolved"}
    roots = {key: pair for key, pair in failed.items() if not causes & set(_TARGET.findall(pair[0]))}
    return _by_cause(roots, raw, origins)


def _by_cause(failed: dict[str, tuple[str, Finding]], raw: dict[str, Any], origins: dict[str, Origin]) -> list[Finding]:
    """One finding for each key that is not there, however many refer to it: who deleted a section did one thing."""
    found: list[Finding] = []
    without: dict[str, list[str]] = {}
    wanted: dict[str, str] = {}
    for key, (text, finding) in failed.items():
        targets = {gone: target for target in reversed(_TARGET.findall(text)) if (gone := _gone(raw, target))}
        gone = next(reversed(targets), None)
        wanted = {**targets, **wanted}
        if gone is None:
            found.append(finding)
        elif gone in without:
            without[gone].append(key)
        else:
            without[gone] = [key]
            if gone not in origins:
                found.append(finding)
    for gone, keys in without.items():
        if gone in origins:
            others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            verb = "refers" if len(keys) == 1 else "refer"
            message = f"`{gone}` is taken away here, and `{keys[0]}`{others} {verb} to it"
            inside = f", and change keys in it such as `{wanted[gone]}`" if wanted[gone] != gone else ""
            hint = f"keep `{gone}`{inside}"
            found.append(Finding("error", "unresolved", message, gone, origins[gone], hint))
    return found


def _gone(raw: dict[str, Any], target: str) -> str | None:
    """The first part of a dotted key that leads nowhere; None when all of it is there."""
    at: Any = raw
    names = target.split(".")
    for depth, name in enumerate(names, 1):
        at = at.get(name) if isinstance(at, dict) else at[int(name)] if _is_item(at, name) else None
        if isinstance(at, str) and "${" in at:
            return None  # a reference of its own, which has its own finding
        if at is None and (depth < len(names) or not _has(raw, names)):
            return ".".join(names[:depth])
    return None


def _is_item(at: Any, name: str) -> bool:
    return isinstance(at, list) and name.isdecimal() and int(name) < len(at)


def _has(raw: dict[str, Any], names: list[str]) -> bool:
    at: Any = raw
    for name in names[:-1]:
        at = at[int(name)] if isinstance(at, list) else at[name]
    return _is_item(at, names[-1]) or (isinstance(at, dict) and names[-1] in at)


def _malformed(key: str, text: str, origin: Origin | None) -> Finding | None:
    """What OmegaConf would refuse to even hold."""
    if text == _MISSING:
        message, hint = f"`{key}` has no default and must be given", f"add `{key}=...` to the command line"
        return Finding("error", "missing-key", message, key, origin, hint)
    if not is_plain(text) and _is_broken(text):
        message = f"`{key}` holds a broken interpolation: `{text}`"
        return _finding(key, message, origin, "write `${key}` or `${resolver:argument}`")
    return None


@lru_cache(maxsize=4096)
def _is_broken(text: str) -> bool:
    """Whether OmegaConf's grammar refuses a text; many configs have the same ones."""
    try:
        OmegaConf.create([text])
    except GrammarParseError:
        return True
    return False


def _register(run_dir: str) -> None:
    resolvers: dict[str, Callable[..., Any]] = {
        "mul": lambda a, b: _number(a) * _number(b),
        "div": lambda a, b: _number(a) / _number(b),
        "max": lambda a, b: max(_number(a), _number(b)),
        "asset": _asset,
        "artifact": _artifact,
        "run_dir": lambda *_: run_dir,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_resolver(name, resolver, replace=True, annotation_validation="off")


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{kind(value)} is not a number")
    return value


def _asset(name: str) -> str:
    path = ASSETS / name
    if not path.exists():
        have = sorted(p.relative_to(ASSETS).as_posix() for p in ASSETS.glob("*/*") if not p.name.startswith("_"))
        guess = closest(name, (p.relative_to(ASSETS).as_posix() for p in ASSETS.rglob("*")))
        hint = f"did you mean `{guess}`?" if guess else f"there is {listed(have)}"
        raise NotFoundError(f"there is no shipped asset `{name}`", hint=hint)
    return str(path)


def _artifact(*words: str) -> str:
    raise NotAvailableError(f"artifacts cannot be looked up here: `{','.join(words)}`", hint="give a path instead")


def _texts(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(key, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, child in items for found in _texts(child, f"{key}.{name}" if key else str(name))]


def _nearest_origin(origins: dict[str, Origin], key: str) -> Origin | None:
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key)


def _try(config: DictConfig, key: str, text: str, origin: Origin | None, keys: set[str]) -> Finding | None:
    """Resolve one value; a finding that names the key, the place and the variable if that fails."""
    try:
        OmegaConf.select(config, key, throw_on_resolution_failure=True)
    except OmegaConfBaseException as error:
        return _explain(error, key, text, origin, keys)
    return None


def _explain(error: OmegaConfBaseException, key: str, text: str, origin: Origin | None, keys: set[str]) -> Finding:
    cause = _root_cause(error)
    if isinstance(cause, NemotronError):
        message = f"`{key}` cannot be resolved: {cause.message}"
        return Finding("error", "unresolved", message, key, origin, cause.hint, exit_code=cause.exit_code)
    if resolver := re.search(r"Unsupported interpolation type (\S+)", str(error)):
        guess = closest(resolver[1], RESOLVERS)
        hint: str | None = f"did you mean `{guess}`?" if guess else f"known are {listed(RESOLVERS)}"
        return _finding(key, f"`{key}` uses the unknown resolver `{resolver[1]}`", origin, hint)
    if target := re.search(r"Interpolation key '(.*)' not found", str(error)):
        guess = nearest(target[1], keys)
        hint = f"did you mean `{guess}`?" if guess else None
        return _finding(key, f"`{key}` refers to `{target[1]}`, which does not exist", origin, hint)
    if variable := re.search(r"Environment variable '(.*?)' not found", str(error)):
        hint = f"set it, or give a default: `${{oc.env:{variable[1]},value}}`"
        return _finding(key, f"`{key}` needs the environment variable `{variable[1]}`, which is not set", origin, hint)
    if "Recursive interpolation" in str(error):
        message = f"`{key}` refers to itself through `{text}`"
        return Finding("error", "circular-reference", message, key, origin)
    if isinstance(cause, TypeError) and "positional argument" in str(cause):
        names = [name for name in FORMS if f"{{{name}:" in text.replace(" ", "")]
        message = f"`{key}` cannot be resolved from `{text}`: these are no arguments of {listed(names)}"
        return _finding(key, message, origin, f"write {' or '.join(f'`{FORMS[name]}`' for name in names)}")
    return _finding(key, f"`{key}` cannot be resolved from `{text}`: {str(cause).splitlines()[0]}", origin, None)


def _root_cause(error: BaseException) -> BaseException:
    """What a resolver raised, below OmegaConf's own wrappers."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _finding(key: str, message: str, origin: Origin | None, hint: str | None) -> Finding:
    return Finding("error", "unresolved", message, key, origin, hint)
