"""Values against the step's model: every problem at once, each with its origin and the fix."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nemotron.config import known
from nemotron.config.layers import Resolved
from nemotron.config.origins import YamlError, kind, shown
from nemotron.config.schema.fields import NULL_NOT_ALLOWED, form_in_words
from nemotron.config.yaml import parse_yaml
from nemotron.errors import Finding, Origin
from nemotron.suggest import closest, listed

M = TypeVar("M", bound=BaseModel)

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "bool_parsing": "`true` or `false`",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "`null`",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


def validate(resolved: Resolved, model: type[M]) -> tuple[M | None, list[Finding]]:
    """Check the config strictly against ``model``; the model is None when there is any error.

    Findings (with those of the overrides) are sorted by origin: files in the order of reading, then the command line.
    """
    findings = list(resolved.findings)
    config = None
    try:
        config = model.model_validate(resolved.values)
    except ValidationError as error:
        findings += _findings(error, resolved, model)
    return (None if findings else config), in_order(findings, resolved)


def in_order(findings: list[Finding], resolved: Resolved) -> list[Finding]:
    """Findings sorted by where they were written, those without a place first."""
    files = {shown(path): rank for rank, path in enumerate(resolved.files, 1)}

    def place(finding: Finding) -> tuple[int, int, int]:
        origin = finding.origin
        if origin is None:
            return (0, 0, 0)
        return (files.get(origin.source, len(files) + 1), origin.line or origin.argument or 0, origin.column or 0)

    return sorted(findings, key=place)


def _findings(error: ValidationError, resolved: Resolved, model: type[BaseModel]) -> list[Finding]:
    grouped: dict[str, list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        grouped[_key(detail, resolved.values)].append(detail)
    also = _merge_copies(grouped, resolved)
    missing = [key for key, rows in grouped.items() if rows[0]["type"] == "missing" and key not in resolved.origins]
    # Of a union of a scalar and a section, only the branch that the user went down is worth a message.
    deeper = {key for key in grouped if any(other.startswith(f"{key}.") for other in grouped)}
    findings = _missing(missing, resolved)
    for key, details in grouped.items():
        if key in missing:
            continue
        if key in deeper and all(d["type"] in _EXPECTED or d["type"] == "literal_error" for d in details):
            continue
        findings.append(_finding(key, details, resolved, model, also.get(key)))
    return findings


def _merge_copies(grouped: dict[str, list[ErrorDetails]], resolved: Resolved) -> dict[str, str]:
    """One mistake is one error: what refers to a wrong value, or is computed from it, is wrong with it.

    Errors of keys whose value stands elsewhere move to the key where it stands. Returns, for those that had no error of
    their own, the key through which the value turned out to be wrong.
    """
    also: dict[str, str] = {}
    for key in list(grouped):
        source = resolved.source(key)
        if source != key:
            details = grouped.pop(key)
            if source not in grouped:
                grouped[source], also[source] = details, key
    for key in list(grouped):
        if resolved.sources(key) & set(grouped):
            del grouped[key]
    return also


def _key(detail: ErrorDetails, values: Any) -> str:
    """The dotted key of an error: pydantic's location without the names of union branches, which are no keys."""
    at, names = values, []
    location = detail["loc"]
    for depth, part in enumerate(location):
        in_list = isinstance(at, list) and isinstance(part, int) and part < len(at)
        if in_list or (isinstance(at, dict) and part in at):
            at = at[part]
        elif not (detail["type"] == "missing" and depth == len(location) - 1):
            continue
        names.append(str(part))
    return ".".join(names)


def _finding(
    key: str, details: list[ErrorDetails], resolved: Resolved, model: type[BaseModel], also: str | None
) -> Finding:
    first = details[0]
    origin = resolved.origin(key)
    if first["type"] == "extra_forbidden":
        exists = known.look_up(model, key.split(".")) is not known.Standing.UNKNOWN
        nearest = key if exists else known.nearest(key, known.keys(model))
        guess = resolved.source(nearest) if nearest else None
        hint = f"did you mean `{guess}`?" if guess else None
        if guess and "." in str(first["loc"][-1]):
            hint = f"dots join names on the command line alone; here write it nested: `{_nested(guess)}`"
        return Finding("error", "unknown-key", f"unknown key `{key}`", key, origin, hint)
    if first["type"] == "missing":
        return Finding("error", "missing-key", f"`{key}` is required, and deleted here", key, origin)
    name, message, hint = _wrong_value(key, details, resolved, secret=known.is_secret(model, also or key))
    message += f" (`{also}` refers to it)" if also else ""
    return Finding("error", name, f"`{key}`: {message}" if key else message, key, origin, hint)


def _missing(keys: list[str], resolved: Resolved) -> list[Finding]:
    """One finding per section that lacks keys."""
    sections: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        sections[key.rpartition(".")[0]].append(key)
    findings = []
    for section, lacking in sections.items():
        ways = [f"set {listed(f'{key}=...' for key in lacking)}"] if len(lacking) < 4 else []
        if len(resolved.files) == 1:
            ways.append("inherit the step's own config: `defaults: default`")
        one = len(lacking) == 1
        message = f"the key `{lacking[0]}` is missing" if one else f"{len(lacking)} keys are missing: {listed(lacking)}"
        where = lacking[0] if one else section or None
        origin = resolved.origin(lacking[0])
        findings.append(Finding("error", "missing-key", message, where, origin, ", or ".join(ways) or None))
    return findings


def _nested(key: str) -> str:
    """A dotted key as YAML: ``a: {b: ...}``."""
    *above, last = key.split(".")
    return "".join(f"{name}: {{" for name in above) + f"{last}: ..." + "}" * len(above)


def _wrong_value(
    key: str, details: list[ErrorDetails], resolved: Resolved, *, secret: bool
) -> tuple[str, str, str | None]:
    """(error name, message, hint) for a value of the wrong type, out of range, or refused by a rule of the model."""
    value = details[0]["input"]
    got = "a value that is not shown, since it is secret" if secret else kind(value)
    expected: list[str] = []
    for detail in details:
        error, context = detail["type"], detail.get("ctx", {})
        if error in _BOUNDS:
            field, words = _BOUNDS[error]
            return "out-of-range", f"must be {words} {context[field]}, got {got}", None
        if error in ("value_error", "assertion_error"):
            return "invalid-value", detail["msg"].partition(", ")[2] or detail["msg"], None
        if error in ("too_short", "too_long"):
            field, words = ("min_length", "at least") if error == "too_short" else ("max_length", "at most")
            return "out-of-range", f"must have {words} {context[field]} item(s), got {context['actual_length']}", None
        if error == "string_pattern_mismatch" and (form := form_in_words(context["pattern"])) is not None:
            return "invalid-value", f"must be {form}, got {got}", None
        if error == "union_tag_invalid":
            tags = _choices(context["expected_tags"])
            guess = closest(str(context["tag"]), tags)
            hint = f"did you mean `{guess}`?" if guess else f"known: {listed(tags)}"
            return "invalid-value", f"there is no {context['discriminator']} `{context['tag']}`".replace("'", "`"), hint
        if error == "literal_error":
            expected += [f"`{choice}`" for choice in _choices(context["expected"])]
        elif error in _EXPECTED:
            expected.append(_EXPECTED[error])
        else:
            # Models of ours may raise errors of their own kinds; their sentences are complete.
            own = not detail["msg"].startswith("Input should")
            if error == NULL_NOT_ALLOWED:
                return "invalid-value", detail["msg"], f"drop it; where a config sets it, `~{key}` takes it away"
            return "invalid-value", detail["msg"] if own else f"must{detail['msg'][12:]}, got {got}", None
    wanted = list(dict.fromkeys(expected))
    joined = wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} or {wanted[-1]}"
    return "wrong-type", f"expected {joined}, got {got}", None if secret else _type_hint(key, value, wanted, resolved)


def _choices(expected: str) -> list[str]:
    """pydantic's `'a', 'b' or 'c'` as a list."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _type_hint(key: str, value: Any, expected: list[str], resolved: Resolved) -> str | None:
    """A fix for the slips that have an obvious one."""
    written = resolved.written(key)
    if isinstance(value, str) and written != value and _is_one_of(value, expected):
        # A variable of the environment is a text, which has no quotes that could be dropped.
        return f"what is put together or comes from a variable is a text: write `${{oc.decode:{written}}}`"
    choices = [choice.strip("`") for choice in expected if choice.startswith("`")]
    if isinstance(value, str) and (guess := closest(value, choices)):
        return f"did you mean `{key}={guess}`?"
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return "YAML 1.2 has only `true` and `false`"
    if isinstance(value, str) and "an integer" in expected and value.lstrip("-").isdecimal():
        return "drop the quotes"
    if isinstance(value, float) and value.is_integer() and "an integer" in expected:
        return f"write `{int(value)}`"
    if value is not None and not isinstance(value, str | dict | list) and "a string" in expected:
        # What was typed, for YAML has made another value of it; and the shell takes one pair of quotes away.
        word = resolved.words.get(key)
        return f"put it in quotes: `'{key}=\"{word}\"'`" if word is not None else "put it in quotes, as it is written"
    return None


def _is_one_of(text: str, expected: list[str]) -> bool:
    """Whether YAML would read a text as what is expected."""
    try:
        node = parse_yaml(text, Origin("text"))
    except YamlError:
        return False
    value = None if node is None else node.value
    if isinstance(value, bool):
        return "`true` or `false`" in expected
    if isinstance(value, int) and "an integer" in expected:
        return True
    return isinstance(value, int | float) and {"a number", "a finite number"}.intersection(expected) != set()
