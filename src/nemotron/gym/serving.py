"""What every resources server of ours answers with, whatever it scores."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from nemotron.errors import NemotronError
from nemotron.gym.gathering import IncompleteGroup, SlotTaken
from nemotron.gym.protocol import Json

MAX_BODY_BYTES = 256 * 2**20
"""Token ids and log-probabilities of a long rollout travel with its answer."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Unfit(Exception):
    """The row lacks what the server needs; becomes status 422."""


def routes(verify: Callable[[Json], Awaitable[Json]]) -> web.Application:
    """An application with the routes of every resources server."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_get("/", _health)
    app.router.add_post("/seed_session", answering(_seed_session))
    app.router.add_post("/aggregate_metrics", answering(_aggregate))
    app.router.add_post("/verify", answering(verify))
    return app


def answering(answer: Callable[[Json], Awaitable[Json]]) -> Handler:
    """A handler whose failures have the status and the words that NeMo-Gym 0.7.0 has for them."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(await answer(await _object(request)))
        except Unfit as error:
            return _failed(422, "request", str(error))
        except SlotTaken as error:
            return _failed(409, "conflict", str(error))
        except IncompleteGroup as error:
            return _failed(503, "incomplete_group", str(error))
        except NemotronError as error:
            return _failed(503, "reward", error.message)

    return handle


def _failed(status: int, kind: str, reason: str) -> web.Response:
    return web.json_response({"detail": reason, "failure_kind": kind, "failure_reason": reason}, status=status)


async def _object(request: web.Request) -> Json:
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise Unfit("the body is not JSON") from None
    if not isinstance(body, dict):
        raise Unfit("the body is not a JSON object")
    return body


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _seed_session(body: Json) -> Json:
    """None of our servers keeps anything between calls."""
    return {}


async def _aggregate(body: Json) -> Json:
    """Means over everything that was verified."""
    rows = body.get("verify_responses")
    if not isinstance(rows, list):
        raise Unfit("`verify_responses` is no list")
    rewards = [row["reward"] for row in rows if isinstance(row, dict) and isinstance(row.get("reward"), int | float)]
    means = {"mean/reward": sum(rewards) / len(rewards)} if rewards else {}
    return {"group_level_metrics": [], "agent_metrics": means, "key_metrics": means}
