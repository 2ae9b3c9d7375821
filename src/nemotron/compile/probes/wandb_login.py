"""Whether Weights & Biases could start, found out from the places where its library looks, without importing it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from nemotron.config.schema.logger import WandbConfig
from nemotron.disk.documents import read_bytes
from nemotron.disk.home import expanded

_MOST_BYTES = 1 << 20
_CLOUD = "https://api.wandb.ai"


def wandb_can_start(config: WandbConfig, env: Mapping[str, str]) -> bool:
    """A key is there, or none is needed: W&B is offline or disabled.

    ``config`` is ``logger.wandb``, ``env`` the environment of the command.
    """
    settings = _settings(env)
    mode = (config.model_extra or {}).get("mode") or env.get("WANDB_MODE") or settings.get("mode") or "online"
    if mode != "online" or env.get("WANDB_API_KEY") or env.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(env.get("WANDB_BASE_URL") or settings.get("base_url") or _CLOUD).hostname or ""
    home = expanded(env.get("HOME", "~"))
    files = [Path(env["NETRC"])] if env.get("NETRC") else [home / ".netrc", home / "_netrc"]
    return "api_key" in settings or any(_names(path, host) for path in files)


def _names(netrc: Path, host: str) -> bool:
    try:
        words = read_bytes(netrc, _MOST_BYTES).decode().split()
    except (OSError, UnicodeDecodeError):
        return False
    return ("machine", host) in pairwise(words)


def _settings(env: Mapping[str, str]) -> dict[str, str]:
    """What ``wandb offline`` and the like have written: of the user, then of the working directory."""
    import configparser  # only runs that log to W&B come here

    user = expanded(env.get("WANDB_CONFIG_DIR") or Path(env.get("HOME", "~")) / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([user / "settings", Path("wandb") / "settings"])
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}
