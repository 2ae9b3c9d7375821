"""The policy as NeMo-Gym's agents see it: a model server that answers with responses sampled before.

The embedded engine samples whole groups at once. An agent that then runs a row asks its model server for an answer, and
this endpoint gives it the response that was sampled for that rollout, so one turn of an agent costs no second sampling.
The rollout is named in ``metadata`` of the row's ``responses_create_params``, which agents hand to their model server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nemotron.config.schema.gym import PolicyEndpointConfig
from nemotron.errors import RewardError
from nemotron.gym.protocol import Json

ROLLOUT = "nemotron_rollout"
"""Key in ``metadata``."""
_TURN_LIMIT = "the embedded engine samples one turn; agents that ask again need NeMo-RL"


def named_row(row: Json, rollout: str) -> Json:
    """``row`` with the rollout's name in the metadata of its ``responses_create_params``."""
    params = row["responses_create_params"]
    metadata = {**(params.get("metadata") or {}), ROLLOUT: rollout}
    return {**row, "responses_create_params": {**params, "metadata": metadata}}


class ReplayEndpoint:
    """``POST /v1/responses`` on the address that the agents' configs name. Belongs to one event loop."""

    def __init__(self, config: PolicyEndpointConfig) -> None:
        self._config = config
        self._responses: dict[str, tuple[int, Json]] = {}
        self._runner: web.AppRunner | None = None

    def offer(self, rollout: str, row: Mapping[str, Any], response: Json) -> None:
        """Answer requests of ``rollout`` with ``response`` from now on, as often as its first turn is asked for."""
        self._responses[rollout] = (_turns(row["responses_create_params"].get("input")), response)

    def withdraw(self, rollout: str) -> None:
        """Forget a rollout."""
        self._responses.pop(rollout, None)

    async def start(self) -> None:
        """Listen. Raises RewardError when the address is taken."""
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_get("/", _health)
        app.router.add_post("/v1/responses", self._respond)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        host, port = self._config.host, self._config.port
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise RewardError(
                f"the policy cannot listen on {host}:{port}: {error.strerror}",
                hint="choose another `gym.policy_endpoint.port`, and name it in the agents' config too",
            ) from error

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.read())
            rollout = (body.get("metadata") or {})[ROLLOUT]
            turns, response = self._responses[rollout]
        except (ValueError, AttributeError, KeyError, TypeError):
            return _refused("no sampled response goes with this request")
        if _turns(body.get("input")) != turns:
            return _refused(_TURN_LIMIT)
        return web.json_response(response)


def _turns(messages: Any) -> int:
    return len(messages) if isinstance(messages, list) else 1


def _refused(message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})
