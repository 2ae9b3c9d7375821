"""Secrets by what they are: values of ``SecretStr`` fields, wherever else in the config they may have been copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron.config.schema.extras import JudgedGrpoConfig

SECRET_KEYS = {"judge_api_key": ("env", "nemo_gym", "genrm_model", "responses_api_models", "vllm_model", "api_key")}


def secrets_in(config: JudgedGrpoConfig | None) -> dict[str, str]:
    """Name -> value of every secret that is set."""
    gym = config.env.nemo_gym if config else None
    key = gym.genrm_model.responses_api_models.vllm_model.api_key if gym and gym.genrm_model else None
    value = key.get_secret_value() if key else ""
    return {"judge_api_key": value} if value else {}


def elsewhere(values: Any, secrets: Mapping[str, str]) -> list[str]:
    """Dotted keys of texts that hold a secret although they are no place for one."""
    places = {".".join(path) for path in SECRET_KEYS.values()}
    return [key for key, text in _texts(values) if key not in places and any(s in text for s in _findable(secrets))]


def redact(values: Any, secrets: Mapping[str, str]) -> Any:
    """A copy without secrets: their own keys become null, and text that holds one loses it."""
    cleaned = _redact(values, _findable(secrets))
    for path in SECRET_KEYS.values():
        at = cleaned
        for name in path[:-1]:
            at = at.get(name) if isinstance(at, dict) else None
        if isinstance(at, dict) and path[-1] in at:
            at[path[-1]] = None
    return cleaned


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
