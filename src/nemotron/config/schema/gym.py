"""``gym``: resources servers that speak NeMo-Gym's protocol and score answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, Name, NonNegativeInt, Port, PositiveFloat

ServerKind = Literal["math", "mcqa", "mcqa_0_4_0"]


def _address(url: str) -> str:
    if not url.startswith(("http://", "https://")) or not url.split("://", 1)[1].strip("/"):
        raise ValueError(f"`{url}` is not an http address, e.g. `http://localhost:12001`")
    return url.rstrip("/")


class GymServerConfig(Strict):
    """One resources server: its address, or which of our own servers stands in for it."""

    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """Address of a running server, e.g. ``http://localhost:12001``; null starts our own ``kind`` on loopback."""
    kind: ServerKind | None = None
    """Our own server: ``math`` (math-verify, no judge model), ``mcqa`` (letters of multiple-choice answers; the last
    box counts, as in NeMo-Gym 0.7.0), ``mcqa_0_4_0`` (the first box, as in the NeMo-Gym of NeMo-RL v0.7.0)."""
    agents: Annotated[list[Name], Field(min_length=1)]
    """Rows whose ``agent_ref.name`` is one of these are scored by this server; so are rows with one of these, or the
    server's own name, as ``task_source``."""
    group_timeout_s: PositiveFloat | None = None
    """Seconds that this server itself waits for the other answers of a group, as genrm_compare does (1800 in NeMo-Gym
    0.7.0): its requests may take that much longer, and do not count in ``gym.max_concurrent_requests``, or the server
    would keep answers that nobody waits for any more. null for servers that score an answer by itself."""
    seed_session: bool = True
    """Open a session before each check, as NeMo-Gym's agents do; servers without state do not need it."""
    protocol: Literal["verify", "run"] = "verify"
    """``verify``: ``base_url`` is a resources server. ``run``: it is an agent, which runs the row with our sampled
    response as its model's answer and has it verified; needs ``gym.policy_endpoint``."""

    @model_validator(mode="after")
    def _one_place(self) -> GymServerConfig:
        if (self.base_url is None) == (self.kind is None):
            raise ValueError("give either `base_url` (a running server) or `kind` (our own)")
        if self.protocol == "run" and self.base_url is None:
            raise ValueError("`protocol: run` needs the `base_url` of an agent; our own servers verify")
        return self


class PolicyEndpointConfig(Strict):
    """Where agents find the policy: their config names this address as that of their model server."""

    host: Name = "127.0.0.1"
    """Address to listen on; anybody who reaches it can read the responses being scored."""
    port: Port
    """Port to listen on."""


class GymConfig(Strict):
    """Servers by name, and how they are asked."""

    servers: Annotated[dict[Name, GymServerConfig], Field(min_length=1)]
    """Resources servers by name; the name stands in metrics."""
    policy_endpoint: PolicyEndpointConfig | None = None
    """Where agents find the policy; null where no server has ``protocol: run``."""
    request_timeout_s: PositiveFloat = 60.0
    """Seconds one request may take in all."""
    max_retries: NonNegativeInt = 4
    """Further tries after a connection failure, a timeout, 429 or 5xx, with growing, jittered pauses."""
    max_concurrent_requests: Count = 64
    """Requests in flight at once."""
    ready_timeout_s: PositiveFloat = 60.0
    """Seconds to wait until every server answers its first probe."""

    @model_validator(mode="after")
    def _agents_are_unique(self) -> GymConfig:
        agents = [name for name, server in self.servers.items() if server.protocol == "run"]
        if agents and self.policy_endpoint is None:
            raise ValueError(f"the agent of `{agents[0]}` finds no policy: set `gym.policy_endpoint.port`")
        seen: dict[str, str] = {}
        for name, server in self.servers.items():
            for agent in server.agents:
                if agent in seen:
                    raise ValueError(f"agent `{agent}` belongs to two servers: `{seen[agent]}` and `{name}`")
                seen[agent] = name
        return self

    def server_of(self, agent: str | None) -> str | None:
        """Name of the server that scores the rows of ``agent``, which may be a server's own name."""
        served = next((name for name, server in self.servers.items() if agent in server.agents), None)
        return served or (agent if agent in self.servers else None)
