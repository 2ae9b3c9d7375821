"""Secrets by what they are: values of ``SecretStr`` fields, wherever else in the config they may have been copied.

In sections that take any key along, also what stands under a name that only a secret has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, SecretStr

from nemotron.config.known import is_secret


def secrets_in(config: BaseModel | None) -> dict[str, str]:
    """Config key -> value of every secret that is set."""
    found = {key: secret.get_secret_value() for key, secret in _places(config, "") if secret}
    return {key: value for key, value in found.items() if value}


def likely_secrets(values: Any, model: type[BaseModel]) -> dict[str, str]:
    """Of a config that its model does not take: what stands where a secret belongs, or under the name of one."""
    return {
        key: text
        for key, text in _texts(values)
        if text and (is_secret(model, key) or _NAMES.search(re.sub(r"(\.\d+)+$", "", key).rpartition(".")[2]))
    }


def secret_keys(config: BaseModel | None) -> list[str]:
    """Config keys that are made for a secret, set or not."""
    return [key for key, _ in _places(config, "")]


def elsewhere(values: Any, secrets: Mapping[str, str]) -> list[str]:
    """Dotted keys of texts that hold a secret although they are no place for one."""
    return [key for key, text in _texts(values) if key not in secrets and any(s in text for s in _findable(secrets))]


def with_password(values: Any) -> list[str]:
    """Dotted keys of addresses with a user's password: ``https://user:password@host``."""
    return [key for key, text in _texts(values) if PASSWORD.search(text)]


def shown_address(url: str) -> str:
    """An address as it may be said: its user and password are nobody's business."""
    return PASSWORD.sub(lambda found: f"{found[0].partition('://')[0]}://[secret]@", url)


def without_passwords(values: Any) -> Any:
    """A copy in which addresses have no user and password."""
    if isinstance(values, dict):
        return {key: without_passwords(child) for key, child in values.items()}
    if isinstance(values, list):
        return [without_passwords(child) for child in values]
    return shown_address(values) if isinstance(values, str) else values


def redact(values: Any, secrets: Mapping[str, str]) -> Any:
    """A copy without secrets: their own keys become null, and text that holds one loses it."""
    cleaned = _redact(values, _findable(secrets))
    for key in secrets:
        *path, name = key.split(".")
        at = cleaned
        for part in path:
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict) and name in at:
            at[name] = None
        elif isinstance(at, list) and name.isdecimal() and int(name) < len(at):
            at[int(name)] = None
    return cleaned


def secret_variables(config: BaseModel | None, raw: Any) -> dict[str, str]:
    """Config key -> environment variable of every key for a secret that the config reads from the environment.

    ``raw`` is the config before interpolation: ``api_key: ${oc.env:RL_REWARD_API_KEY,null}``.
    """
    found = {}
    for key, _ in _places(config, ""):
        at = raw
        for name in key.split("."):
            at = at.get(name) if isinstance(at, Mapping) else None
        match = _VARIABLE.match(at) if isinstance(at, str) else None
        if match:
            found[key] = match[1]
    return found


_NAMES = re.compile(
    r"(^|_)(api_?keys?|(access|auth|bearer)_tokens?|secrets?|secret_keys?|passwords?|passwd|authorization)$",
    re.IGNORECASE,
)
"""How keys are called that hold a secret, mistyped ones included."""
PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/?#@]*:[^\s/?#@]+@", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{oc\.env:\s*(\w+)")


def _places(value: Any, key: str) -> Iterator[tuple[str, SecretStr | None]]:
    """Every key whose field is made for a secret, with what it holds."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            place = f"{key}.{name}" if key else name
            if SecretStr in (field.annotation, *get_args(field.annotation)):
                yield place, getattr(value, name)
            else:
                yield from _places(getattr(value, name), place)
        yield from _places(value.model_extra or {}, key)
    elif isinstance(value, dict):
        for name, child in value.items():
            place = f"{key}.{name}" if key else str(name)
            # No field that we know, but what a section takes along under such a name is nobody else's business.
            if _NAMES.search(str(name)) and isinstance(child, str):
                yield place, SecretStr(child)
            elif _NAMES.search(str(name)) and isinstance(child, list) and all(isinstance(text, str) for text in child):
                yield from ((f"{place}.{index}", SecretStr(text)) for index, text in enumerate(child))
            else:
                yield from _places(child, place)


def _findable(secrets: Mapping[str, str]) -> tuple[str, ...]:
    """Secrets long enough not to be found in innocent text by chance."""
    return tuple(secret for secret in secrets.values() if len(secret) >= 8)


def _redact(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _redact(child, secrets) for key, child in value.items()}
    if isinstance(value, list):
        return [_redact(child, secrets) for child in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "[secret]")
    return value


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in items:
        yield from _texts(child, f"{key}.{name}" if key else str(name))
