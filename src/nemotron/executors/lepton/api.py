"""Lepton's REST API: where a workspace is, and what opens it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemotron.disk.documents import read_bytes
from nemotron.disk.home import expanded
from nemotron.errors import ConfigError
from nemotron.executors.http import PATIENCE_S, Service
from nemotron.profiles.model import LeptonProfile
from nemotron.runs.attempts import Handle

_MOST_BYTES = 1 << 20
SERVICE = "https://gateway.dgxc-lepton.nvidia.com/api/v2/workspaces/"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the API is, and what opens it."""

    url: str
    token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Of every call, beside the token. DGX Cloud wants to know the page that asks."""
        if "dgxc" not in self.url:
            return {}
        scheme, _, rest = self.url.partition("://")
        return {"origin": f"{scheme}://{rest.partition('/')[0]}"}


def workspace_of(profile: LeptonProfile, environ: Mapping[str, str] | None = None) -> Workspace:
    """The workspace of a profile: what it says, else the environment, else what ``lep workspace login`` noted down.

    Raises:
        ConfigError: no workspace or no token can be found.
    """
    environ = os.environ if environ is None else environ
    noted, current = _login(environ)
    name = profile.workspace_id or environ.get("LEPTON_WORKSPACE_ID") or current
    record = noted.get(name or "", {})
    url = profile.workspace_url or environ.get("LEPTON_WORKSPACE_URL") or record.get("url")
    if not url:
        if not name:
            raise ConfigError(
                "no Lepton workspace is known",
                hint="`lep workspace login`, or set `workspace_id` in the profile or LEPTON_WORKSPACE_ID",
            )
        url = SERVICE + name
    if "@" in str(url).partition("://")[2].partition("/")[0]:
        raise ConfigError(
            "the address of the Lepton workspace holds a user or password",
            hint=f"leave them out of LEPTON_WORKSPACE_URL; {profile.token_env} holds the token",
        )
    token = environ.get(profile.token_env) or record.get("auth_token")
    if not token:
        raise ConfigError(
            f"no token for the Lepton workspace `{name or url}`",
            hint=f"`lep workspace login`, or set {profile.token_env}",
        )
    return Workspace(str(url).rstrip("/"), str(token))


def _login(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Workspaces by id, and the current one, as Lepton's own client keeps them."""
    folder = Path(environ.get("LEPTON_CACHE_DIR") or expanded(environ.get("HOME", "~")) / ".cache" / "lepton")
    try:
        content = yaml.safe_load(read_bytes(folder / "workspace_info.yaml", _MOST_BYTES))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        # Nobody has logged in on this machine, or not in a way that can be read: the variables are left.
        return {}, None
    if not isinstance(content, dict) or not isinstance(content.get("workspaces"), dict):
        return {}, None
    current = content.get("current_workspace")
    known = {str(name): record for name, record in content["workspaces"].items() if isinstance(record, dict)}
    return known, current if isinstance(current, str) else None


def workspace_of_handle(handle: Handle) -> Workspace:
    """The workspace that an attempt was started in.

    Raises:
        ConfigError: no workspace or no token can be found.
    """
    where = (handle.model_extra or {}).get("workspace") or {}
    return workspace_of(LeptonProfile.model_validate({"executor": "lepton", **where}))


class Api(Service):
    """Calls to one workspace."""

    def __init__(self, workspace: Workspace, *, patience_s: float = PATIENCE_S) -> None:
        super().__init__(
            "Lepton",
            workspace.url,
            workspace.token,
            workspace.headers,
            token_hint="log in again with `lep workspace login`, or set another LEPTON_WORKSPACE_TOKEN",
            patience_s=patience_s,
        )
