"""Secrets by what they are: values of ``SecretStr`` fields, wherever else in the config they may have been copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron.config.schema.extras import JudgedGrpoConfig

SECRET_KEYS = {"judge_api_key": ("env", "nemo_gym", "genrm_model", "responses_api_models", "vllm_model", "api_key")}


def secrets_in(config: JudgedGrpoConfig | None) -> dict[str, str]:
    """Name -> value of every secret that is set."""
    gym = config.env.nemo_gym if config else None
    key = gym.genrm_model.responses_api_models.vllm_model.api_key if gym and gym.genrm_model else None
    value = key.get_secret_value() if key else ""
    return {"judge_api_key": value} if value else {}


def redact(values: Any, secrets: Mapping[str, str]) -> Any:
    """A copy without secrets: the keys of secrets and values that are one become null, text that holds one is cut."""
    cleaned = _redact(values, tuple(secrets.values()))
    for path in SECRET_KEYS.values():
        at = cleaned
        for name in path[:-1]:
            at = at.get(name) if isinstance(at, dict) else None
        if isinstance(at, dict) and path[-1] in at:
            at[path[-1]] = None
    return cleaned


def _redact(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _redact(child, secrets) for key, child in value.items()}
    if isinstance(value, list):
        return [_redact(child, secrets) for child in value]
    if isinstance(value, str):
        for secret in secrets:
            if value == secret:
                return None
            # A short secret would also be found in innocent text, and cutting it there would break paths.
            value = value.replace(secret, "[secret]") if len(secret) >= 8 else value
    return value
