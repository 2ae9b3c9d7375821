"""Lepton's REST API: the handful of calls that a job needs, each tried again where the service stumbles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from nemotron.errors import ConfigError, ExecutorError, NotFoundError
from nemotron.profiles.model import LeptonProfile

SERVICE = "https://gateway.dgxc-lepton.nvidia.com/api/v2/workspaces/"
TIMEOUT_S = 30.0
PATIENCE_S = 60.0
"""How long a service that answers 5xx, 429 or not at all is asked again."""


class _Stumbles(Exception):
    """An answer that may be another one in a moment."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the API is, and what opens it."""

    url: str
    token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Of every call. DGX Cloud wants to know the page that asks."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if "dgxc" in self.url:
            parts = urlsplit(self.url)
            headers["origin"] = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return headers


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
    token = environ.get(profile.token_env) or record.get("auth_token")
    if not token:
        raise ConfigError(
            f"no token for the Lepton workspace `{name or url}`",
            hint=f"`lep workspace login`, or set {profile.token_env}",
        )
    return Workspace(str(url).rstrip("/"), str(token))


def _login(environ: Mapping[str, str]) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Workspaces by id, and the current one, as Lepton's own client keeps them."""
    folder = Path(environ.get("LEPTON_CACHE_DIR") or Path(environ.get("HOME", "~")).expanduser() / ".cache" / "lepton")
    try:
        content = yaml.safe_load((folder / "workspace_info.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # Nobody has logged in on this machine, or not in a way that can be read: the variables are left.
        return {}, None
    if not isinstance(content, dict) or not isinstance(content.get("workspaces"), dict):
        return {}, None
    current = content.get("current_workspace")
    known = {str(name): record for name, record in content["workspaces"].items() if isinstance(record, dict)}
    return known, current if isinstance(current, str) else None


class Api:
    """Calls to one workspace."""

    def __init__(self, workspace: Workspace, *, patience_s: float = PATIENCE_S) -> None:
        self._workspace = workspace
        self._client = httpx.Client(headers=workspace.headers, timeout=TIMEOUT_S, trust_env=True)
        self._patience_s = patience_s

    def call(self, method: str, path: str, *, body: Any = None, params: Mapping[str, str] | None = None) -> Any:
        """One call; the parsed answer.

        Raises:
            NotFoundError: 404. ExecutorError: any other refusal, or the service cannot be reached.
        """
        waits = wait_exponential_jitter(initial=0.2, max=5.0)
        again = Retrying(
            retry=retry_if_exception_type(_Stumbles), stop=stop_after_delay(self._patience_s), wait=waits, reraise=True
        )
        try:
            return again(self._once, method, path, body, params)
        except _Stumbles as error:
            raise ExecutorError(
                f"Lepton does not answer at {self._workspace.url}: {error}", hint="try again later"
            ) from error

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes of an answer as they come, until it ends or the connection does.

        Raises:
            ExecutorError: it is refused or breaks.
        """
        url = self._workspace.url + path
        try:
            with self._client.stream("GET", url, timeout=httpx.Timeout(TIMEOUT_S, read=None)) as response:
                if response.status_code != 200:
                    response.read()
                    raise ExecutorError(f"Lepton answers {response.status_code} for the log: {_words(response)}")
                yield from response.iter_raw()
        except httpx.HTTPError as error:
            raise ExecutorError(f"the connection to Lepton broke: {error}") from error

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _once(self, method: str, path: str, body: Any, params: Mapping[str, str] | None) -> Any:
        try:
            response = self._client.request(method, self._workspace.url + path, json=body, params=params)
        except httpx.HTTPError as error:
            raise _Stumbles(str(error) or type(error).__name__) from error
        if response.status_code >= 500 or response.status_code == 429:
            raise _Stumbles(f"{response.status_code} {_words(response)}")
        if response.status_code == 404:
            raise NotFoundError(f"Lepton knows no `{path}`")
        if response.status_code in (401, 403):
            raise ExecutorError(
                f"Lepton refuses the token ({response.status_code}): {_words(response)}",
                hint="log in again with `lep workspace login`, or set another LEPTON_WORKSPACE_TOKEN",
            )
        if response.status_code >= 400:
            raise ExecutorError(f"Lepton refuses {method} {path} ({response.status_code}): {_words(response)}")
        try:
            return response.json() if response.content else None
        except ValueError:
            raise ExecutorError(f"Lepton's answer to {method} {path} is no JSON") from None


def _words(response: httpx.Response) -> str:
    try:
        content = response.json()
    except ValueError:
        return response.text.strip()[:300]
    if isinstance(content, dict):
        content = content.get("message") or content.get("detail") or content
    return str(content)[:300]
