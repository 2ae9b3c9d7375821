"""Resources servers as a source of rewards for rollouts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from nemotron.config.schema.gym import GymConfig
from nemotron.contracts.rewards import GroupRewards, first_failure, missing_share
from nemotron.contracts.samples import Completion
from nemotron.data.rows import PromptRow
from nemotron.errors import RewardError
from nemotron.gym.client import Asked, GymClient
from nemotron.gym.protocol import Json, Verified, agent_of, output_text, response_object, task_row
from nemotron.gym.replay import ReplayEndpoint, named_row
from nemotron.gym.servers import OwnServers
from nemotron.processes.loop_thread import LoopThread
from nemotron.rewards.counts import mean, missing_counts


class GymSource:
    """A ``RewardSource`` that asks the servers of a ``GymConfig``, our own or running ones. A context manager.

    Entering starts our own servers and waits until every server answers (RewardError when one does not). A row is
    scored by the server whose ``agents`` hold its ``agent_ref.name``.
    """

    def __init__(self, config: GymConfig, *, run: str = "") -> None:
        """``run`` names this attempt at a run among all that ask the same servers."""
        self._config = config
        self._run = run
        self._own = OwnServers(config)
        self._background = LoopThread("gym-client")
        self._client: GymClient | None = None
        self._replay = ReplayEndpoint(config.policy_endpoint) if config.policy_endpoint else None

    def __enter__(self) -> Self:
        self._own.__enter__()
        self._background.start()
        try:
            self._background.run(self._open()).result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel everything in flight, stop our own servers."""
        self._background.close(self._leave)
        self._client = None
        self._own.close()

    def submit(
        self, source: PromptRow, texts: Sequence[str], completions: Sequence[Completion], *, seed: int
    ) -> Future[GroupRewards]:
        """Have every response verified. The future raises RewardError when a server is gone."""
        return self._background.run(self._score(source, texts, completions, seed))

    def metrics(self, results: Sequence[GroupRewards]) -> dict[str, float]:
        """Mean reward per server, pass rate (reward of 1 or more), requests, missing share and counts per reason."""
        asked: list[tuple[str, Asked]] = [pair for result in results for pair in result.raw]
        rewards = [a.verified.reward for _, a in asked if a.verified.reward is not None]
        by_server = {
            name: [a.verified.reward for n, a in asked if n == name and a.verified.reward is not None]
            for name in self._config.servers
        }
        return {
            **{f"reward/{name}/mean": mean(found) for name, found in by_server.items() if found},
            "train/pass_rate": mean([float(reward >= 1.0) for reward in rewards]),
            "reward/requests": float(sum(a.requests for _, a in asked)),
            # The kind of a failure; its words may have numbers of their own.
            **missing_counts(
                (name, a.verified.failure.partition(": ")[0]) for name, a in asked if a.verified.failure is not None
            ),
        }

    def too_many_missing(self, results: Sequence[GroupRewards], step: int, limit: float) -> RewardError:
        """The error of servers that do not score."""
        return RewardError(
            f"{missing_share(results):.0%} of the rewards from resources servers in step {step} are missing, the limit "
            f"is {limit:.0%}: {first_failure(results)}",
            hint="`samples.jsonl` of the run has what failed; `limits.max_missing_share` is the limit",
        )

    async def _open(self) -> None:
        if self._replay is not None:
            await self._replay.start()
        self._client = GymClient(self._config, self._own.addresses)
        await self._client.__aenter__()
        await self._client.wait_ready()

    async def _leave(self) -> None:
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
        if self._replay is not None:
            await self._replay.stop()

    async def _score(
        self, source: PromptRow, texts: Sequence[str], completions: Sequence[Completion], seed: int
    ) -> GroupRewards:
        if self._client is None:
            raise RuntimeError("GymSource.submit is called outside of its `with` block")
        agent = agent_of(source.fields)
        name = self._config.server_of(agent)
        if name is None:
            raise RewardError(
                f"row {source.id} names the agent `{agent}`, which no server of `gym.servers` serves",
                hint="add it to `agents` of the right server; `task_source` of a row may be a server's own name",
            )
        asked = await asyncio.gather(
            *(
                self._ask(
                    self._client,
                    name,
                    task_row(source.fields, source.messages, seed, index, run=self._run),
                    response_object(text, ended=not completion.truncated, response_id=_id(seed, index)),
                )
                for index, (text, completion) in enumerate(zip(texts, completions, strict=True))
            )
        )
        failures = [a.verified.failure for a in asked if a.verified.failure is not None]
        return GroupRewards(
            rewards=[a.verified.reward for a in asked],
            details=[_details(name, a) for a in asked],
            asked=len(asked),
            missing=len(failures),
            failure=next(iter(failures), None),
            raw=[(name, a) for a in asked],
        )

    async def _ask(self, client: GymClient, name: str, row: Json, response: Json) -> Asked:
        """Have one response scored, by the resources server itself or through an agent."""
        server = self._config.servers[name]
        if server.protocol == "verify" or self._replay is None:
            return await client.verify(name, {**row, "response": response}, seed_session=server.seed_session)
        rollout = response["id"]
        self._replay.offer(rollout, row, response)
        try:
            asked, answer = await client.run(name, named_row(row, rollout))
        finally:
            self._replay.withdraw(rollout)
        if asked.verified.reward is not None and output_text(answer.get("response")) != output_text(response):
            # Its reward would belong to another text than the one that is trained on.
            return replace(asked, verified=Verified(None, "the agent answers with another text", {}))
        return asked


def _details(server: str, asked: Asked) -> Mapping[str, Any]:
    found: dict[str, Any] = {"server": server, "verified": asked.verified.extras}
    if asked.verified.failure is not None:
        found["missing"] = {server: asked.verified.failure}
    else:
        found["passed"] = (asked.verified.reward or 0.0) >= 1.0
    return found


def _id(seed: int, index: int) -> str:
    """The same response has the same id in a resumed run."""
    return hashlib.sha256(f"{seed}/{index}".encode()).hexdigest()[:32]
