"""NeMo-Gym's messages: what a resources server is sent, and what it answers. Pure functions over JSON values.

Written for nemo-gym 0.4.0 to 0.7.0: fields that only one of them knows are sent to all, the others ignore them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.contracts.answers import split_reply
from nemotron.contracts.rewards import summable

Json = dict[str, Any]
MARK = "nemotron_row"
"""Field of a row: ``{"id": ..., "group": ...}``, which row it is and how many answers to it come in a step."""
MISSING = "missing_share"
"""Field of an answer: the share of what was asked of it, or of its group, that got no result. NeMo-RL makes a metric of
it, ``<agent>/missing_share/mean``."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A server's answer about one response."""

    reward: float | None
    """None: the server gave none."""
    failure: str | None
    """Why, when there is none."""
    extras: Json
    """What else the server says: numbers, texts and yes/no values beside the fields that were sent."""


def agent_of(row: Mapping[str, Any]) -> str | None:
    """Whose a row is: ``agent_ref.name``, else ``task_source`` of newer data, the name of a resources server."""
    agent = row.get("agent_ref")
    name = agent.get("name") if isinstance(agent, Mapping) else row.get("task_source")
    return name if isinstance(name, str) else None


def task_row(
    row: Mapping[str, Any], messages: Sequence[Mapping[str, str]], group: int, rollout: int, *, run: str = ""
) -> Json:
    """A data row as NeMo-Gym wants it: every field of its own, the prompt as ``responses_create_params``, the group.

    Rows with ``messages``, ``prompt`` or ``text`` get their prompt translated; ``group`` names the prompt of this step,
    ``rollout`` counts the responses to it from 0. ``run`` names who asks: a server that lives longer than a run keeps
    its groups for hours, and takes another answer in one of them for a conflict.
    """
    params = row.get("responses_create_params")
    if not isinstance(params, Mapping):
        params = {"input": [{"role": message["role"], "content": message["content"]} for message in messages]}
    return {
        **row,
        "responses_create_params": params,
        "_ng_task_index": group,
        "_ng_rollout_index": rollout,
        "_ng_group_id": f"{run}/{group}" if run else str(group),
    }


def response_object(text: str, *, ended: bool, response_id: str, model: str = "policy") -> Json:
    """A sampled text as a Responses-API object; what was thought becomes a reasoning item."""
    reply = split_reply(text)
    output: list[Json] = []
    if reply.answer != text:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        output.append({"id": f"rs_{response_id}", "type": "reasoning", "summary": summary})
    output.append(
        {
            "id": f"msg_{response_id}",
            "type": "message",
            "role": "assistant",
            "status": "completed" if ended else "incomplete",
            "content": [{"type": "output_text", "text": reply.answer.strip(), "annotations": []}],
        }
    )
    return {
        "id": f"resp_{response_id}",
        "created_at": 0.0,
        "model": model,
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "incomplete_details": None if ended else {"reason": "max_output_tokens"},
    }


def output_text(response: Any) -> str | None:
    """Texts of all ``message`` items of a Responses-API object, joined; None when it is none."""
    items = response.get("output") if isinstance(response, Mapping) else None
    if not isinstance(items, list):
        return None
    return "".join(
        part["text"]
        for item in items
        if isinstance(item, Mapping) and item.get("type") == "message" and isinstance(item.get("content"), list)
        for part in item["content"]
        if isinstance(part, Mapping) and part.get("type") == "output_text" and isinstance(part.get("text"), str)
    )


def read_verified(body: Any, sent: Mapping[str, Any]) -> Verified:
    """The reward in a ``/verify`` or ``/run`` answer; one that is no number to train on is missing, never 0."""
    if not isinstance(body, Mapping):
        return Verified(None, "the answer is not a JSON object", {})
    extras = {
        name: value
        for name, value in body.items()
        if name not in sent and name != "reward" and isinstance(value, bool | int | float | str)
    }
    if body.get("mask_sample") is True:
        return Verified(None, failure_in(body) or "the server masks the sample", extras)
    reward = body.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not summable(reward):
        return Verified(None, "the answer has no finite `reward` that float32 can add up", extras)
    return Verified(float(reward), None, extras)


def failure_in(body: Any, *, status: int | None = None) -> str | None:
    """Why there is no reward, as NeMo-Gym 0.7.0 says it: the kind, which is one of a few, then the reason in words.

    Example: ``incomplete_group (status 503): 3 of 8 answers came within 1800 s``.
    """
    if not isinstance(body, Mapping):
        return None
    kind, reason = (body.get(name) for name in ("failure_kind", "failure_reason"))
    kind = f"{kind} (status {status})" if kind and status else kind
    return ": ".join(said for said in (kind, reason) if said and isinstance(said, str)) or None
